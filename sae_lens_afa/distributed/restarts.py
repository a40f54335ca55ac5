"""Restarts by torchrun: its processes are begun anew with the same command, and find the run that they had begun."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig

from sae_lens_afa.files import write_whole
from sae_lens_afa.training.checkpoint import newest_checkpoint


def _note(cfg: LanguageModelSAERunnerConfig[Any]) -> Path | None:
    """Return the file that says where the checkpoints of torchrun's job are; None where nothing could be resumed."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job is None or cfg.checkpoint_path is None:
        return None
    if job == "none":  # without --rdzv-id or --standalone: the process of torchrun, on its machine
        job = f"{socket.gethostname()}-{os.getppid()}"
    return Path(cfg.checkpoint_path).parent / f".torchrun-{job}"


def note_run(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Write down where this run's checkpoints are, for a restart."""
    note = _note(cfg)
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, lambda path: path.write_text(str(cfg.checkpoint_path), encoding="utf-8"))


def forget_run(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Remove what `note_run` wrote: the run is at its end."""
    if (note := _note(cfg)) is not None:
        note.unlink(missing_ok=True)


def folders_of_run(cfg: LanguageModelSAERunnerConfig[Any]) -> tuple[str | None, str | None]:
    """Return the folder of the run's checkpoints, and the checkpoint from which it goes on: the newest after a restart.

    Otherwise both are those of the configuration.
    """
    note = _note(cfg)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if not restarted or note is None or not note.is_file():
        return cfg.checkpoint_path, cfg.resume_from_checkpoint
    folder = note.read_text(encoding="utf-8")
    newest = str(newest_checkpoint(Path(folder)))
    return folder, cfg.resume_from_checkpoint if newest == folder else newest
