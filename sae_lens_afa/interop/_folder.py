"""Folders of SAEs that appear whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_afa.evals.report import check_writable


def check_replaceable(output: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a folder that cannot be written or that holds something else than an SAE.

    Raises:
        FileExistsError: it exists and may not be overwritten, or is not the folder of an SAE.
        OSError: it cannot be created or written to.
    """
    check_writable(output, overwrite=overwrite)
    if output.is_dir() and any(output.iterdir()) and not (output / SAE_CFG_FILENAME).is_file():
        raise FileExistsError(
            f"output folder {output} is not the folder of an SAE (no {SAE_CFG_FILENAME}), so it is not replaced; give"
            " another one."
        )


def write_folder(output: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a folder beside `output` and move it into place; what was there is replaced as a whole."""
    # Not through a link: its target is replaced, not the link.
    output = output.resolve()
    partial, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        if output.exists():
            output.rename(old)
        try:
            partial.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
