"""A repository on the Hub at one commit: its files, and their way here, whole."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from sae_lens_afa.files import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, sha256_of
from sae_lens_afa.hub._errors import HubError, attempt

ROOT = "."
_DOWNLOADS = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
# A config is a few kB; what claims to be more is not read.
_MAX_JSON_BYTES = 4 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its path there, bytes, and the digest that the Hub states.

    Attributes:
        sha256: Of the content, for files in the Hub's large-file storage (all weights).
        blob_id: Git's object id, for small files.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    blob_id: str | None = None

    def matches(self, path: Path) -> bool:
        """Say whether a local file has the content that the Hub states."""
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        return self.blob_id is None or _git_blob_id(path) == self.blob_id


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository at one commit.

    Attributes:
        private: None where only the cache was asked.
        from_cache: The Hub could not be reached: these are the files that the cache has.
    """

    repo_id: str
    revision: str
    commit: str
    files: dict[str, RemoteFile]
    private: bool | None = None
    from_cache: bool = False
    token: str | bool | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"the cached part of {self.repo_id}" if self.from_cache else self.repo_id

    def sae_ids(self) -> list[str]:
        """Return the folders that hold an SAE, sorted; "." where the repository itself is one."""
        return sae_folders(self.files)


def sae_folders(paths: Iterable[str]) -> list[str]:
    """Return the folders that hold both a config and weights, of the relative POSIX paths of files."""
    names = set(paths)
    folders = {str(PurePosixPath(path).parent) for path in names if PurePosixPath(path).name == SAE_CFG_FILENAME}
    return sorted(folder for folder in folders if in_folder(folder, SAE_WEIGHTS_FILENAME) in names)


def in_folder(folder: str, name: str) -> str:
    """Return the path of a file in an SAE's folder of the repository."""
    return name if folder == ROOT else f"{folder}/{name}"


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless it reads owner/name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not a repository's name, owner/name: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id must be owner/name, got {repo_id!r}.")


def leaves_folder(path: str) -> bool:
    """Say whether a path of a repository could name something outside the folder that it is put into."""
    return "\\" in path or any(part in ("", ".", "..") for part in path.split("/"))


def read_snapshot(
    repo_id: str, revision: str | None = None, token: str | bool | None = None, *, use_cache: bool = True
) -> Snapshot:
    """List the files of a repository; those in the cache, with a warning, when the Hub cannot be reached.

    Args:
        repo_id: "owner/name".
        revision: Branch, tag or commit; None is main.
        token: As in huggingface_hub.
        use_cache: Be content with the cache.

    Raises:
        ValueError: not the name of a repository.
        HubError: no such repository or revision, no access, or the Hub cannot be reached and the cache has none; a
            file name that leaves the repository's folder.
    """
    check_repo_id(repo_id)
    doing = f"cannot read {repo_id}" + (f" at revision {revision!r}" if revision else "")
    if use_cache and _offline() and (cached := _cached(repo_id, revision)) is not None:
        return cached
    try:
        info = attempt(lambda: HfApi().model_info(repo_id, revision=revision, files_metadata=True, token=token), doing)
    except HubError as error:
        cached = _cached(repo_id, revision) if use_cache and _is_unreachable(error) else None
        if cached is None:
            raise
        warnings.warn(f"{error} Using the copy in the cache, commit {cached.commit[:8]}.", stacklevel=3)
        return cached
    files = {
        sibling.rfilename: RemoteFile(
            sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else None,
            None if sibling.lfs else sibling.blob_id,
        )
        for sibling in info.siblings or ()
    }  # fmt: skip
    if unsafe := [path for path in files if leaves_folder(path)]:
        raise HubError(f"{doing}: it has a file named {unsafe[0]!r}, which leads out of its folder; it is refused.")
    return Snapshot(
        repo_id, revision or constants.DEFAULT_REVISION, str(info.sha), files, private=info.private, token=token
    )


def fetch(snapshot: Snapshot, path: str) -> Path:
    """Download one file into huggingface_hub's cache and compare it with the digest that the Hub states.

    A copy that differs does not stay in the cache; it is downloaded again.

    Raises:
        HubError: it cannot be downloaded, or it arrives damaged each time.
    """
    file = snapshot.files[path]
    doing = f"cannot download {path} of {snapshot.repo_id}"
    if path.endswith(".json") and (file.size or 0) > _MAX_JSON_BYTES:
        raise HubError(f"{doing}: it has {file.size} bytes, a config has a few thousand; it is refused.")
    for _ in range(_DOWNLOADS):
        local = Path(
            attempt(
                lambda: hf_hub_download(
                    snapshot.repo_id, path, revision=snapshot.commit, token=snapshot.token,
                    local_files_only=snapshot.from_cache,
                ),
                doing,
            )
        )  # fmt: skip
        if file.matches(local):
            _note_revision(snapshot)
            return local
        blob = local.resolve()
        local.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
    raise HubError(
        f"{doing}: what arrives is damaged, its digest is not the one that the Hub states ({_DOWNLOADS} downloads)."
        " Nothing was loaded, nothing is left in the cache; try again later, or from another network."
    )


def _git_blob_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_unreachable(error: HubError) -> bool:
    return (
        not isinstance(error.__cause__, RepositoryNotFoundError) and getattr(error.__cause__, "response", None) is None
    )


def _storage(repo_id: str) -> Path:
    """Return where huggingface_hub's cache keeps a repository; refs/REVISION there names a commit."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def _note_revision(snapshot: Snapshot) -> None:
    """Remember which commit a branch or tag was, for a time without network.

    huggingface_hub does so when it is asked for the branch; here it is asked for the commit, so that config and
    weights are of the same.
    """
    if snapshot.from_cache or snapshot.revision == snapshot.commit:
        return
    ref = _storage(snapshot.repo_id) / "refs" / snapshot.revision
    if not ref.is_file() or ref.read_text() != snapshot.commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(snapshot.commit)


def _offline() -> bool:
    """Tell whether huggingface_hub is kept from the network; before 1.0 it decided that when it was imported."""
    decide = getattr(constants, "is_offline_mode", None)
    return constants.HF_HUB_OFFLINE if decide is None else decide()


def _cached(repo_id: str, revision: str | None) -> Snapshot | None:
    """Return the snapshot in huggingface_hub's cache, where large files are named by their digest."""
    revision = revision or constants.DEFAULT_REVISION
    storage = _storage(repo_id)
    ref = storage / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = storage / "snapshots" / commit
    if not folder.is_dir():
        return None
    files: dict[str, RemoteFile] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name, digest = path.relative_to(folder).as_posix(), path.resolve().name
            files[name] = RemoteFile(
                name,
                path.stat().st_size,
                digest if _SHA256.fullmatch(digest) else None,
                digest if _SHA1.fullmatch(digest) else None,
            )
    return Snapshot(repo_id, revision, commit, files, from_cache=True)
