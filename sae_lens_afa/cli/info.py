"""`sae-lens-afa info`: what a repository or folder says of its SAEs."""

from __future__ import annotations

from typing import Annotated

import typer

from sae_lens_afa.cli.options import RepositoryOrFolder, Revision


def info(
    repo_or_path: RepositoryOrFolder,
    sae_id: Annotated[str | None, typer.Option(help="Default: all.")] = None,
    revision: Revision = None,
) -> None:
    """Say what is known of the SAEs in a repository or folder, without downloading weights."""
    from sae_lens_afa import hub

    print(hub.info(repo_or_path, sae_id, revision))
