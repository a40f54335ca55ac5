"""`sae-lens-afa plot`: the plots of an evaluation once more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot(
    folder: Annotated[Path, typer.Argument(help="Folder that `sae-lens-afa eval` wrote.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the plots. Default: the same.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="png, svg, pdf or html.")] = None,
) -> None:
    """Redraw the plots of an evaluation from its files."""
    from sae_lens_afa.reports import draw_plots, read_report

    for file in draw_plots(read_report(folder), output or folder, formats or ("png", "html")):
        print(file)
