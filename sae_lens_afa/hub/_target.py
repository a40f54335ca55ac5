"""Repository, branch and tag of a push: looked at before any work and created when it is done."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from sae_lens_afa.hub._errors import HubError, attempt
from sae_lens_afa.hub._remote import Snapshot, read_snapshot


@dataclass(frozen=True)
class Target:
    """Destination of a push, as it was found.

    Attributes:
        exists: True if the repository does.
        new_branch: Branch that has to be created for the push.
    """

    repo_id: str
    revision: str | None
    exists: bool
    new_branch: str | None


def find_target(
    api: HfApi, repo_id: str, *, private: bool | None, revision: str | None, tag: str | None, create_pr: bool
) -> Target:
    """Find out whether repository, branch and tag are as the push needs them, and who pushes.

    Raises:
        HubError: no token or a wrong one, a namespace that is not theirs, or the network.
        ValueError: the repository's visibility is another, the tag exists, there is nothing to open a request for.
    """
    doing = f"cannot push to {repo_id}"
    user = attempt(api.whoami, doing)
    try:
        info = attempt(lambda: api.model_info(repo_id), doing)
    except HubError as error:
        if not isinstance(error.__cause__, RepositoryNotFoundError):
            raise
        names = [user["name"], *(org["name"] for org in user.get("orgs", ()))]
        owner = repo_id.partition("/")[0]
        if create_pr:
            raise
        if owner not in names:
            raise HubError(
                f"{doing}: there is no such repository, and you cannot create it: the token is that of {names[0]!r},"
                f" who may create repositories under {', '.join(names)}. Check the name, or use another token."
            ) from error
        return Target(repo_id, revision, exists=False, new_branch=revision if revision != "main" else None)
    if private is not None and bool(info.private) != private:
        raise ValueError(
            f"{repo_id} exists and is {'private' if info.private else 'public'}, private={private} was asked for:"
            " change it in the repository's settings, or leave private out."
        )
    refs = attempt(lambda: api.list_repo_refs(repo_id), doing)
    if tag is not None and tag in [ref.name for ref in refs.tags]:
        raise ValueError(f"{repo_id} has a tag {tag!r} already: choose another, or delete it first.")
    missing = revision is not None and revision not in [ref.name for ref in refs.branches]
    if missing and create_pr:
        raise ValueError(f"{repo_id} has no branch {revision!r} to open a pull request for.")
    return Target(repo_id, revision, exists=True, new_branch=revision if missing else None)


def prepare(api: HfApi, target: Target, *, private: bool | None) -> Snapshot:
    """Return the branch to commit to, created with its repository if need be."""
    repo_id, branch = target.repo_id, target.new_branch
    if not target.exists:
        doing = f"cannot create {repo_id}"
        attempt(lambda: api.create_repo(repo_id, private=private, exist_ok=True), doing)
    if branch is not None:
        attempt(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), f"cannot branch {repo_id}")
    return read_snapshot(repo_id, target.revision, api.token, use_cache=False)
