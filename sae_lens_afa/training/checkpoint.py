"""Checkpoints of SAELens' runner: complete, of the same configuration, and ready to be continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa.files import read_object
from sae_lens_afa.loading.sae_folder import read_header

_FILES = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
)
# Config fields that may differ between a checkpoint and the run that continues it.
_FREE_FIELDS = {"device", "metadata"}
# SAELens' name of a checkpoint at the end of a run: this and the number of tokens.
_FINAL = "final_"
# Fields that name a device.
DEVICES = ("device", "llm_device", "act_store_device")


def check_checkpoint(checkpoint: str | Path, sae_cfg: TrainingSAEConfig) -> None:
    """Refuse a checkpoint that this run cannot continue.

    Args:
        checkpoint: Folder of a checkpoint of SAELens' runner.
        sae_cfg: The SAE configuration of the run that is to continue it.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: its configuration is of another architecture, or differs in a field.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.runner.check_checkpoint("nowhere", afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16))
        Traceback (most recent call last):
        FileNotFoundError: resume_from_checkpoint: nowhere is not a folder.
    """
    folder = Path(checkpoint)
    where = f"resume_from_checkpoint: {folder}"
    check_files(folder, _FILES, "resume_from_checkpoint")
    read_header(folder / SAE_WEIGHTS_FILENAME, where)
    saved, current = read_object(folder / SAE_CFG_FILENAME, where), sae_cfg.to_dict()
    differing = [
        f"{field} is {saved[field]!r} there and {value!r} here"
        for field, value in current.items()
        if field in saved and field not in _FREE_FIELDS and saved[field] != value
    ]
    if differing:
        raise ValueError(f"checkpoint {folder} is of another configuration: {'; '.join(differing)}.")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run in their order, oldest first; the one at its end comes last."""
    found = [path for path in folder.iterdir() if (path / TRAINER_STATE_FILENAME).is_file()] if folder.is_dir() else []
    whole = [path for path in found if path.name.removeprefix(_FINAL).isdigit()]
    return sorted(whole, key=lambda path: (int(path.name.removeprefix(_FINAL)), path.name))


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint in the folder of a run; the folder itself if there is none in it."""
    return next(reversed(checkpoints_in(folder)), folder)


def check_files(folder: Path, names: Sequence[str], field: str) -> None:
    """Raise FileNotFoundError unless the folder has these files; the message calls it by the field."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{field}: {folder} is not a folder.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{field}: {folder} has no {', '.join(missing)}; it must be a checkpoint that the runner wrote,"
            " <checkpoint_path>/<id>/<number of tokens>."
        )


def config_from_checkpoint(checkpoint: str | Path, *, device: str | None = None) -> LanguageModelSAERunnerConfig[Any]:
    """Return the configuration of the run that wrote `checkpoint`, set to resume from it.

    Args:
        checkpoint: Its folder; or the run's own, that of all its checkpoints, of which the newest is meant.
        device: In place of the run's own devices.

    Raises:
        FileNotFoundError: there is no run configuration in the folder.
        ValueError: it is damaged.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.runner.config_from_checkpoint("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: resume_from_checkpoint: nowhere is not a folder.
    """
    checkpoint = newest_checkpoint(Path(checkpoint))
    path = checkpoint / RUNNER_CFG_FILENAME
    check_files(path.parent, (RUNNER_CFG_FILENAME,), "resume_from_checkpoint")
    settings = read_object(path, f"resume_from_checkpoint: {path.parent}")
    if device is not None:
        settings |= dict.fromkeys(DEVICES, device)
    try:
        cfg = LanguageModelSAERunnerConfig.from_dict(settings)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"resume_from_checkpoint: {path} is no configuration of a run: {error}.") from error
    cfg.resume_from_checkpoint = str(checkpoint)
    return cfg
