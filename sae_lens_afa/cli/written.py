"""The last lines of the verbs that write a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_lens_afa import torchrun


def print_report(report: object, files: Sequence[Path]) -> None:
    """Print what came out and the files that have it; of the processes that torchrun started, the first does."""
    if torchrun.rank() == 0:
        print(f"\n{report}\n\nwritten:")
        for file in files:
            print(f"  {file}")
