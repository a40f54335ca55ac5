"""`sae-lens-afa pull`: SAEs from the Hugging Face Hub into folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_lens_afa.cli.options import Overwrite, Repository, Revision


def pull(
    repo_id: Repository,
    output: Annotated[Path, typer.Option(help="Folder that gets one folder for each SAE.")],
    sae_id: Annotated[list[str] | None, typer.Option(help="Default: all; may be given several times.")] = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy SAEs from the Hub into a folder, compared with the digests that the Hub states."""
    from sae_lens_afa import hub

    for folder in hub.pull(repo_id, output, sae_id or (), revision, overwrite=overwrite):
        print(folder)
