"""The last lines of the verbs that write a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sae_lens_afa import torchrun


class Written(Protocol):
    """A report on files that were written; `str()` is for the terminal."""

    @property
    def files(self) -> Sequence[Path]:
        """Their paths."""
        ...


def print_report(report: Written) -> None:
    """Print what came out and where it is; of the processes that torchrun started, the first does."""
    if torchrun.rank() == 0:
        print(f"\n{report}\n\nwritten:")
        for file in report.files:
            print(f"  {file}")
