"""The folder of a sweep: its settings, and one whole file for each group of runs that is finished."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from sae_lens_afa._support import write_whole

FORMAT = 1
_PACKAGES = ("sae-lens-afa", "sae-lens", "transformer-lens", "torch", "numpy")


class ResultFolder:
    """Finished groups of a sweep on disk: kept over a kill, refused to another sweep.

    Args:
        folder: Made if it is missing.
        settings: What the sweep does; JSON values only.

    Raises:
        FileExistsError: `folder` is something else than a folder of a sweep.
        ValueError: it belongs to a sweep with other settings; the message names the first that differs.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._runs = self.folder / "runs"
        own: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **settings}))
        path = self.folder / "settings.json"
        if path.is_file():
            self._check(json.loads(path.read_text()), own)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"output {self.folder} exists and is not the folder of a sweep; give another one.")
        self._runs.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            text = json.dumps(own, indent=2) + "\n"
            write_whole(path, lambda partial: partial.write_text(text))

    def _check(self, there: Any, here: dict[str, Any]) -> None:
        difference = _first_difference(there, here, "")
        if difference:
            raise ValueError(
                f"output folder {self.folder} holds a sweep with other settings: {difference}."
                " Give another --output, or the settings of that sweep to continue it."
            )

    def finished(self, group: str) -> bool:
        """Whether the group's runs are there."""
        return self._file(group).is_file()

    def write(self, group: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of a finished group, with the versions they were made with."""
        data = {"versions": versions(), "rows": [_none_for_nan(row) for row in rows]}
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        write_whole(self._file(group), lambda partial: partial.write_text(text))

    def rows(self, groups: Sequence[str]) -> list[dict[str, Any]]:
        """All rows of those of the groups that are finished, in this order."""
        return [row for group in groups if self.finished(group) for row in self._read(group)["rows"]]

    def versions(self, groups: Sequence[str]) -> list[dict[str, str]]:
        """The versions that the groups were made with, each set once."""
        seen: list[dict[str, str]] = []
        for group in groups:
            if self.finished(group) and (made_with := self._read(group)["versions"]) not in seen:
                seen.append(made_with)
        return seen

    def _file(self, group: str) -> Path:
        return self._runs / f"{group}.json"

    def _read(self, group: str) -> Any:
        try:
            return json.loads(self._file(group).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{self._file(group)} is damaged ({error}); remove it and run the sweep again.") from error


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    return {"python": python_version(), **{name: version(name) for name in _PACKAGES}}


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
