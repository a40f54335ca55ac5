"""`sae-lens-afa list`: the SAEs of a repository or folder."""

from __future__ import annotations

from sae_lens_afa.cli.options import RepositoryOrFolder, Revision


def list_saes(repo_or_path: RepositoryOrFolder, revision: Revision = None) -> None:
    """List the ids of the SAEs in a repository or folder."""
    from sae_lens_afa import hub

    for sae_id in hub.list_saes(repo_or_path, revision):
        print(sae_id)
