"""Text and tokens by name: a file, a folder of files, a folder of `datasets`, or a name on the Hub."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, DatasetInfo, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from pyarrow.lib import ArrowException

from sae_lens_afa.loading.names import first_line, is_path

_READERS = {
    ".txt": "text", ".txt.gz": "text",
    ".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".json.gz": "json",
    ".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv",
}  # fmt: skip
KINDS = ", ".join(_READERS)
# Columns that SAELens' store reads, the first that is there; the last three only with use_chat_formatting.
# "null" is a column in which every row is empty.
_STRINGS = ("string", "large_string", "string_view", "null")
_COLUMNS = ("tokens", "input_ids", "text", "problem", "conversation", "conversations", "messages")


def text_dataset(texts: Sequence[str], name: str = "") -> Dataset:
    """Return texts as a data set that SAELens' store reads.

    Args:
        texts: One for each document.
        name: Name that evaluations note (`dataset.info.dataset_name`).

    Example:
        >>> from sae_lens_afa.loading.text import text_dataset
        >>> text_dataset(["In the beginning", "And God said"], name="verses").info.dataset_name
        'verses'
    """
    return Dataset.from_dict({"text": list(texts)}, info=DatasetInfo(dataset_name=name or None))


def load_text_dataset(name: str, *, what: str = "dataset") -> Any:
    """Return the data of a local file or folder; the name itself where it can only be one on the Hub.

    Args:
        name: A file (.txt: documents between empty lines; .jsonl, .json, .parquet, .csv, also gzipped), a folder of
            such files, a folder that `save_to_disk` wrote (of a DatasetDict its `train`, or its only part), or a name
            on the Hub. Text is in the column `text`, tokens in `tokens` or `input_ids`.
        what: Name of the parameter, for messages.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without data.
        ValueError: a file of a kind that is not read or that is damaged, no text in it, or no column to read.
    """
    if not name:
        raise ValueError(f"{what} is empty: give a file, a folder or a name on the Hub.")
    path = Path(name)
    if not path.exists():
        if is_path(name) or _kind(path) is not None:
            raise FileNotFoundError(f"{what} {name}: there is no such file or folder.")
        return name
    try:
        data = _read_folder(path, what) if path.is_dir() else _read_files([path], what)
    except (DatasetGenerationError, ArrowException, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        cause = error.__cause__ or error
        differ = "its rows have different columns, or columns of different types: give all the same"
        said = differ if isinstance(cause, CastError) else first_line(cause)
        raise ValueError(f"{what} {name} cannot be read: {said}") from error
    return checked_data(data, f"{what} {name}")


def _kind(path: Path) -> str | None:
    """Return the ending by which a file is read: the longest that fits."""
    name = path.name.lower()
    return max((ending for ending in _READERS if name.endswith(ending)), key=len, default=None)


def _read_folder(folder: Path, what: str) -> Any:
    """Return the data of a folder that `save_to_disk` wrote, or of all data files in it that are not hidden."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return load_from_disk(str(folder))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _kind(path) is not None)
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise FileNotFoundError(
            f"{what} {folder} has no data: give a file ({KINDS}), a folder of them, or one that `save_to_disk` wrote."
        )
    return _read_files(files, what)


def _one_part(data: Any, where: str) -> Any:
    """Return the `train` of a DatasetDict, or its only part; other data as it is."""
    if not isinstance(data, DatasetDict):
        return data
    if "train" in data:
        return data["train"]
    if len(data) == 1:
        return next(iter(data.values()))
    raise ValueError(
        f"{where} has the parts {', '.join(map(str, data))} and no 'train': give the folder of one of them."
    )


def _read_files(files: list[Path], what: str) -> Any:
    """Return the rows of files of one kind."""
    kinds = {str(_kind(path)) for path in files}
    readers = {_READERS.get(kind) for kind in kinds}
    if readers == {None}:
        raise ValueError(f"{what} {files[0]}: only {KINDS} files are read.")
    if len(readers) > 1:
        raise ValueError(f"{what} {files[0].parent} has files of several kinds ({', '.join(sorted(kinds))}): keep one.")
    if not any(path.stat().st_size for path in files):
        raise ValueError(f"{what} {files[0]} holds no text.")
    if readers == {"text"}:
        return text_dataset([part for path in files for part in _read_text(path).split("\n\n") if part.strip()])
    (reader,) = readers
    return load_dataset(str(reader), data_files=[str(path) for path in files], split="train")


def _read_text(path: Path) -> str:
    """Return the text of a file, gzipped or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return file.read()


def checked_data(data: Any, where: str) -> Any:
    """Return the data without rows that have no text; of a DatasetDict its `train`, or its only part.

    Raises:
        ValueError: there is nothing in it for SAELens' store to read; the message begins with `where`.
    """
    data = _one_part(data, where)
    if not isinstance(data, Dataset):
        return data
    columns: list[str] = data.column_names
    found = next((name for name in _COLUMNS if name in columns), None)
    if found is None:
        raise ValueError(
            f"{where} has the columns {', '.join(columns) or '(none)'}: text must be in 'text', tokens in 'tokens' or"
            " 'input_ids'."
        )
    rows: Any = data
    if found == "text":
        if getattr(kind := data.features["text"], "dtype", None) not in _STRINGS:
            raise ValueError(f"{where}: the column 'text' must hold strings, it holds {kind}.")
        if data.data.column("text").null_count:
            rows = data.filter(_is_given, input_columns="text")
    if len(rows) == 0 or (found == "text" and not any(row["text"].strip() for row in rows)):
        raise ValueError(f"{where} holds no text.")
    return rows


def _is_given(text: str | None) -> bool:
    """Return whether a row has a text."""
    return text is not None
