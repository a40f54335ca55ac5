"""Files and folders that appear whole: written aside and moved, checked before the work, compared by digests.

Imports neither torch nor SAELens: commands that only read files start fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# SAELens' names (`sae_lens.constants`, whose import takes seconds); a test holds them equal.
SAE_CFG_FILENAME = "cfg.json"
SAE_WEIGHTS_FILENAME = "sae_weights.safetensors"
SPARSITY_FILENAME = "sparsity.safetensors"
RUNNER_CFG_FILENAME = "runner_cfg.json"
ACTIVATION_SCALER_CFG_FILENAME = "activation_scaler.json"
FEATURES_FILENAME = "features.html"  # this package's: the page of an SAE's features


def cache_folder() -> Path:
    """Return the folder of what can be made again: $SAE_LENS_AFA_CACHE, or sae-lens-afa in the user's cache."""
    own = os.environ.get("SAE_LENS_AFA_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-lens-afa"


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a file beside `path` and move it into place, so that there is never half a file."""
    # The ending stays: writers tell the format by it. Of its own for each process that may write the same file.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextmanager
def _folder_beside(folder: Path) -> Generator[Path]:
    """Make an empty folder in which the content of `folder` is prepared; nothing of it is left behind."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_folder(output: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a folder beside `output` and move it into place; what was there is replaced as a whole."""
    # Not through a link: its target is replaced, not the link.
    output = output.resolve()
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with _folder_beside(output) as partial:
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
            shutil.rmtree(old, ignore_errors=True)


def write_into(folder: Path, write: Callable[[Path], Any], *, remove: Iterable[str] = ()) -> list[Path]:
    """Let `write` fill a folder beside `folder` and move each of its files into `folder`, whose other files stay.

    Nothing is moved before `write` is done; a `folder` that is not there appears as a whole.

    Args:
        folder: Where the files are to be.
        write: Writes files, no folders, into the folder that it is given.
        remove: Names of older files that go when the new ones come.

    Returns:
        The files, in their place, by name.
    """
    with _folder_beside(folder.resolve()) as partial:
        write(partial)
        if not folder.exists():
            partial.rename(folder)
            return sorted(folder.iterdir())
        files = sorted(partial.iterdir())
        for name in set(remove) - {path.name for path in files}:
            (folder / name).unlink(missing_ok=True)
        return [path.replace(folder / path.name) for path in files]


def read_object(path: Path, where: str) -> dict[str, Any]:
    """Return the object in a JSON file.

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
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds_something(folder: Path) -> bool:
    """Return whether a folder is there and not empty."""
    return folder.is_dir() and any(folder.iterdir())


def nearest_folder(path: Path) -> Path:
    """Return the path itself if it exists, else the nearest of its parents that does."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def check_output_folder(folder: Path, *, overwrite: bool, what: str = "output folder") -> None:
    """Refuse, before the work, an output folder that exists or cannot be written.

    Args:
        folder: Where output is to be.
        overwrite: Whether its content may be replaced.
        what: Name of the folder in messages.

    Raises:
        FileExistsError: it exists and `overwrite` is False, or it is not a folder.
        NotADirectoryError: it cannot be created or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{what} {folder} exists and is not a folder; give another one.")
    existing = nearest_folder(folder)
    try:  # permissions alone say too little: of the superuser, of file systems that are read-only
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=existing))
    except OSError as error:
        message = f"{what} {folder} cannot be written: {existing} is not a writable folder."
        raise NotADirectoryError(message) from error
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{what} {folder} exists; pass overwrite=True to replace it, or give another one.")


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a folder that cannot be written or that holds something else than an SAE.

    Raises:
        FileExistsError: it holds something and may not be overwritten, or is not the folder of an SAE.
        NotADirectoryError: it cannot be created or written to.
    """
    check_output_folder(folder, overwrite=overwrite)
    if holds_something(folder) and not (folder / SAE_CFG_FILENAME).is_file():
        raise FileExistsError(
            f"output folder {folder} is not the folder of an SAE (no {SAE_CFG_FILENAME}), so it is not replaced; give"
            " another one."
        )
