"""Saving of a trained SAE: whole, and somewhere else before it is lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from sae_lens_afa.files import SAE_CFG_FILENAME, holds_something, write_folder, write_into
from sae_lens_afa.loading.names import first_line

_FAILURES = (OSError, SafetensorError, RuntimeError)


def save_sae(
    output: Path, write: Callable[[Path], None], *, checkpoints: Path | None, last_checkpoint: Path | None
) -> None:
    """Let `write` save an SAE in a folder beside `output` and move it into place; elsewhere if that fails.

    An SAE that is there is replaced as a whole. In a folder with other content the files are put beside it.

    Args:
        output: Where the SAE is to be.
        write: Saves it in the folder that it is given.
        checkpoints: Folder of the run's checkpoints, beside which it is saved if `output` cannot be written.
        last_checkpoint: The checkpoint to name if it cannot be saved anywhere.

    Raises:
        OSError: `output` cannot be written; the message says where the SAE is.
    """
    has_other_content = holds_something(output) and not (output / SAE_CFG_FILENAME).is_file()
    try:
        (write_into if has_other_content else write_folder)(output, write)
    except _FAILURES as error:
        kept = _rescue(write, checkpoints)
        if kept is not None:
            said = f"the trained SAE was saved in {kept} instead: move it from there."
        elif last_checkpoint is not None:
            said = f"nor any other place; the last checkpoint is {last_checkpoint}."
        else:
            said = "nor any other place: it is lost."
        raise OSError(f"{output} cannot be written ({first_line(error)}); {said}") from error


def _rescue(write: Callable[[Path], None], checkpoints: Path | None) -> Path | None:
    """Save the SAE in the first other place where that works, and return it; None if there is none."""
    places = [] if checkpoints is None else [checkpoints / "rescued"]
    for place in (*places, Path(tempfile.gettempdir()) / f"sae-lens-afa-rescued-{os.getpid()}"):
        try:
            write_folder(place, write)
        except _FAILURES:
            continue
        return place
    return None
