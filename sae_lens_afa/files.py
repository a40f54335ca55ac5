"""Files and folders that appear whole: written aside and moved, checked before the work, told apart by digests.

Imports neither torch nor SAELens: commands that only read files start fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# SAELens' names (`sae_lens.constants`, whose import takes seconds); a test holds them equal.
SAE_CFG_FILENAME = "cfg.json"
SAE_WEIGHTS_FILENAME = "sae_weights.safetensors"
SPARSITY_FILENAME = "sparsity.safetensors"
RUNNER_CFG_FILENAME = "runner_cfg.json"
ACTIVATION_SCALER_CFG_FILENAME = "activation_scaler.json"


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a file beside `path` and move it into place, so that there is never half a file."""
    # The ending stays: writers tell the format by it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


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


def write_into(folder: Path, write: Callable[[Path], Any]) -> list[Path]:
    """Let `write` fill a folder beside `folder` and move its files into it, each whole; return them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        folder.mkdir(exist_ok=True)
        return [path.replace(folder / path.name) for path in sorted(partial.iterdir())]
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_object(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is not JSON, or holds something else; `where` says whose file it is.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, not JSON
        raise ValueError(f"{where}: {path.name} is not JSON ({error}); get it anew.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where}: {path.name} must hold an object, it holds a {type(data).__name__}.")
    return data


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output_folder(folder: Path, *, overwrite: bool, what: str = "output folder") -> None:
    """Refuse, before the work, an output folder that exists or cannot be written.

    Args:
        folder: What is to be written.
        overwrite: Whether its content may be replaced.
        what: What it is called in messages.

    Raises:
        FileExistsError: it exists and `overwrite` is False, or it is not a folder.
        NotADirectoryError: it cannot be created or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{what} {folder} exists and is not a folder; give another one.")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:  # permissions alone say too little: of the superuser, of file systems that are read-only
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=existing))
    except OSError as error:
        message = f"{what} {folder} cannot be written: {existing} is not a writable folder."
        raise NotADirectoryError(message) from error
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"{what} {folder} exists; pass --overwrite (overwrite=True) to replace it, or give another one."
        )


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a folder that cannot be written or that holds something else than an SAE.

    Raises:
        FileExistsError: it holds something and may not be overwritten, or is not the folder of an SAE.
        NotADirectoryError: it cannot be created or written to.
    """
    check_output_folder(folder, overwrite=overwrite)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SAE_CFG_FILENAME).is_file():
        raise FileExistsError(
            f"output folder {folder} is not the folder of an SAE (no {SAE_CFG_FILENAME}), so it is not replaced; give"
            " another one."
        )
