"""The folder of a sweep: its settings, and the row of every run that is finished, in whole files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from sae_lens_afa.experiments.claims import claimed
from sae_lens_afa.experiments.rows import key_of
from sae_lens_afa.files import write_whole

FORMAT = 4  # 2: metrics under names of their own; 4: steps and learning rate in each row
_PACKAGES = ("sae-lens-afa", "sae-lens", "transformer-lens", "torch", "numpy")


class ResultFolder:
    """Finished runs of a sweep on disk: kept over a kill, refused to a sweep whose runs would be others.

    A sweep may grow there: given more arms, seeds or data, it runs what is not finished. Processes may fill one folder
    side by side.

    Args:
        folder: Made if it is missing.
        settings: What the sweep does; JSON values only.
        growing: Keys of `settings` that may be others than those there. Where it is a mapping, what both have
            must be the same.

    Attributes:
        folder: The folder.
        runs: That of the runs, a file for each group.

    Raises:
        FileExistsError: `folder` is something else than a folder of a sweep.
        ValueError: it is of an older version, or of a sweep with other settings; the message names the first that
            differs.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], growing: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        own: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **settings}))
        # A list that grows is not kept: every row says what it is.
        own = {key: value for key, value in own.items() if key not in growing or isinstance(value, dict)}
        mappings = [key for key in growing if key in own]
        path = self.folder / "settings.json"
        # With the runs' folder alone, another process is about to write the settings.
        if self.folder.exists() and not path.is_file() and not self._holds_runs_alone():
            raise FileExistsError(f"output {self.folder} exists and is not the folder of a sweep; choose another one.")
        self.runs.mkdir(parents=True, exist_ok=True)
        with claimed(self.runs, path.stem, wait=True):
            merged = self._merged(path, own, mappings) if path.is_file() else own
            text = json.dumps(merged, indent=2) + "\n"
            if not path.is_file() or path.read_text() != text:
                write_whole(path, lambda partial: partial.write_text(text))

    def _holds_runs_alone(self) -> bool:
        return self.folder.is_dir() and all(path == self.runs for path in self.folder.iterdir())

    def _merged(self, path: Path, own: dict[str, Any], mappings: Sequence[str]) -> dict[str, Any]:
        """Return these settings with what the mappings there have beside.

        Raises:
            ValueError: those there are of an older version, or others.
        """
        there = json.loads(path.read_text())
        if there.get("format") != FORMAT:
            raise ValueError(
                f"output folder {self.folder} was written by another version of this package, whose rows say other"
                " things; choose another folder, or go on there with that version."
            )
        self._check(there, own, mappings)
        return own | {key: {**there[key], **own[key]} for key in mappings}

    def _check(self, there: dict[str, Any], here: dict[str, Any], mappings: Sequence[str]) -> None:
        for key in mappings:
            common = there.get(key, {}).keys() & here[key].keys()
            there, here = ({**side, key: {k: side.get(key, {})[k] for k in sorted(common)}} for side in (there, here))
        difference = _first_difference(there, here, "")
        if difference:
            raise ValueError(
                f"output folder {self.folder} holds a sweep with other settings: {difference}."
                " Choose another folder, or the settings of that sweep to continue it."
            )

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of runs that were finished together in the file `name`, with the versions they were made with.

        What that file has already stays there.
        """
        path = self.runs / f"{name}.json"
        made = [
            *(_read(path) if path.is_file() else []),
            {"versions": versions(), "rows": [_none_for_nan(row) for row in rows]},
        ]
        text = json.dumps(made, indent=1, allow_nan=False) + "\n"
        write_whole(path, lambda partial: partial.write_text(text))

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return the rows of all finished runs by `rows.key_of`."""
        return {key_of(row): row for made in self._made() for row in made["rows"]}

    def versions(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return the versions that these runs were made with, each set once."""
        wanted, seen = set(keys), list[dict[str, str]]()
        for made in self._made():
            if made["versions"] not in seen and wanted & {key_of(row) for row in made["rows"]}:
                seen.append(made["versions"])
        return seen

    def _made(self) -> Iterator[Any]:
        for path in sorted(self.runs.glob("*.json")):
            yield from _read(path)


def versions() -> dict[str, str]:
    """Return the versions of what the results depend on."""
    return {"python": python_version(), **{name: version(name) for name in _PACKAGES}}


def _read(path: Path) -> list[Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the sweep again.") from error


def _first_difference(there: Any, here: Any, where: str) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            missing = "(not given)"
            difference = _first_difference(there.get(key, missing), here.get(key, missing), f"{where}.{key}".strip("."))
            if difference:
                return difference
        return ""
    return "" if there == here else f"{where} is {_short(there)} there and {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."


def _none_for_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
