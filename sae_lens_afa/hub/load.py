"""Loading SAEs from the Hub or a folder, so that what was loaded is what was pushed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.files import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, check_output_folder, sha256_of, write_into
from sae_lens_afa.hub._contents import FILENAMES, SAEFacts, read_facts, remote_facts
from sae_lens_afa.hub._remote import (
    Snapshot,
    check_repo_id,
    fetch,
    in_folder,
    read_snapshot,
    sae_folders,
)
from sae_lens_afa.loading import sae_folder

if TYPE_CHECKING:
    import torch
    from sae_lens.saes.sae import SAE


def load(
    repo_or_path: str | Path,
    sae_id: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    *,
    token: str | bool | None = None,
) -> SAE[Any]:
    """An SAE of any registered architecture, from a repository on the Hub or from a folder.

    From the Hub, the files come through huggingface_hub's cache and are compared with the digests that the Hub states:
    a damaged download is repeated and never used. Config and weights are checked against each other before anything
    is allocated. Without a network, what the cache has is used, with a warning.

    Args:
        repo_or_path: "owner/name", or a local folder.
        sae_id: Which SAE: its folder in the repository; "." is the repository or folder itself. None takes the
            only one.
        revision: Branch, tag or commit on the Hub.
        device: cpu, cuda, ...
        dtype: float32, bfloat16, ...; None keeps that of the weights.
        token: As everywhere in huggingface_hub: None uses the one you are logged in with.

    Returns:
        The SAE for inference.

    Raises:
        HubError: the repository, the revision or the network; or downloads that arrive damaged.
        FileNotFoundError: a folder without an SAE.
        ValueError: no such SAE (the message lists those that exist); an architecture that is not registered; weights
            that are damaged or disagree with the config (naming the tensor and both shapes).
    """
    from sae_lens_afa.loading.models import check_device

    check_device(device)
    folder, where = _locate(repo_or_path, sae_id, revision, token)
    return sae_folder.load_folder(folder, device, dtype, where)


def list_saes(repo_or_path: str | Path, revision: str | None = None, *, token: str | bool | None = None) -> list[str]:
    """The ids of the SAEs in a repository or folder, sorted; "." where it is itself one.

    Raises:
        HubError: the repository, the revision or the network.
        FileNotFoundError: no such folder.
    """
    local = _local_folder(repo_or_path)
    if local is not None:
        return _local_ids(local)
    return read_snapshot(str(repo_or_path), revision, token).sae_ids()


@dataclass(frozen=True)
class RepoInfo:
    """What a repository or folder holds; `str()` is a table.

    Attributes:
        name: The repository or folder.
        commit: The commit that was read; None for a folder.
        saes: By id: configuration, training settings and figures.
    """

    name: str
    commit: str | None
    saes: dict[str, SAEFacts]

    def __str__(self) -> str:
        at = f" at commit {self.commit[:8]}" if self.commit else ""
        lines = [f"{self.name}{at}: {len(self.saes)} SAE{'s' * (len(self.saes) != 1)}"]
        for sae_id, facts in self.saes.items():
            lines.append(f"\n{sae_id}")
            rows = facts.rows()
            width = max(len(name) for name, _ in rows)
            lines += [f"  {name:<{width}}  {value}" for name, value in rows]
        return "\n".join(lines)


def info(
    repo_or_path: str | Path,
    sae_id: str | None = None,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
) -> RepoInfo:
    """What is known of the SAEs of a repository or folder, without downloading weights.

    Args:
        repo_or_path: "owner/name", or a local folder.
        sae_id: Of one SAE only.
        revision: Branch, tag or commit on the Hub.
        token: None uses the one you are logged in with.

    Raises:
        HubError, FileNotFoundError, ValueError: as `load`.
    """
    local = _local_folder(repo_or_path)
    if local is not None:
        ids = [_choose(sae_id, _local_ids(local), str(local))] if sae_id is not None else _local_ids(local)
        return RepoInfo(str(local), None, {name: read_facts(local / name, str(local / name)) for name in ids})
    snapshot = read_snapshot(str(repo_or_path), revision, token)
    ids = [_choose(sae_id, snapshot.sae_ids(), snapshot.label)] if sae_id is not None else snapshot.sae_ids()
    return RepoInfo(snapshot.repo_id, snapshot.commit, {name: remote_facts(snapshot, name) for name in ids})


def pull(
    repo_id: str,
    output: str | Path,
    sae_ids: Sequence[str] = (),
    revision: str | None = None,
    *,
    overwrite: bool = False,
    token: str | bool | None = None,
) -> list[Path]:
    """Copy SAEs of a repository into a folder, each under its id, with a note of its weights' digest.

    Args:
        repo_id: "owner/name".
        output: Folder that gets one folder for each id.
        sae_ids: Which; all if empty.
        revision: Branch, tag or commit.
        overwrite: Replace folders of the same names.
        token: None uses the one you are logged in with.

    Returns:
        The folders, each written whole or not at all.

    Raises:
        HubError, ValueError: as `load`.
        FileExistsError: an SAE's folder exists and `overwrite` is not given.
    """
    snapshot = read_snapshot(repo_id, revision, token)
    known = snapshot.sae_ids()
    chosen = [_choose(sae_id, known, snapshot.label) for sae_id in sae_ids] or known
    if not chosen:
        raise ValueError(_no_sae(snapshot.label))
    folders = {sae_id: Path(output) / sae_id for sae_id in chosen}
    for folder in folders.values():
        check_output_folder(folder, overwrite=overwrite)
    for sae_id, folder in folders.items():
        source = _fetch_sae(snapshot, sae_id)
        weights = in_folder(sae_id, SAE_WEIGHTS_FILENAME)
        others = [in_folder(sae_id, name) for name in FILENAMES if name not in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)]
        files = [source / SAE_CFG_FILENAME, source / SAE_WEIGHTS_FILENAME]
        files += [fetch(snapshot, path) for path in others if path in snapshot.files]
        digest = snapshot.files[weights].sha256 or sha256_of(source / SAE_WEIGHTS_FILENAME)
        write_into(folder, partial(_copy, files, digest), remove=FILENAMES)
    return list(folders.values())


def _copy(files: Sequence[Path], digest: str, folder: Path) -> None:
    for path in files:
        shutil.copyfile(path, folder / path.name)
    sae_folder.write_sha256(folder, digest)


def _locate(
    repo_or_path: str | Path, sae_id: str | None, revision: str | None, token: str | bool | None
) -> tuple[Path, str]:
    """The local folder of an SAE, downloaded if need be, and how errors call it."""
    local = _local_folder(repo_or_path)
    if local is not None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for the Hub, but {local} is a folder: leave it out.")
        folder = local / _choose(sae_id, _local_ids(local), str(local))
        return folder, str(folder)
    snapshot = read_snapshot(str(repo_or_path), revision, token)
    chosen = _choose(sae_id, snapshot.sae_ids(), snapshot.label)
    return _fetch_sae(snapshot, chosen), f"{chosen} of {snapshot.repo_id}"


def _fetch_sae(snapshot: Snapshot, sae_id: str) -> Path:
    """Config first: what it says may be reason enough not to download the weights."""
    where = f"{sae_id} of {snapshot.repo_id}"
    path = fetch(snapshot, in_folder(sae_id, SAE_CFG_FILENAME))
    sae_folder.check_architecture(sae_folder.read_config(path, where), where)
    return fetch(snapshot, in_folder(sae_id, SAE_WEIGHTS_FILENAME)).parent


def _local_folder(repo_or_path: str | Path) -> Path | None:
    """The folder that is meant, or None for a repository.

    Raises:
        FileNotFoundError: it reads like a path, and there is no such folder.
    """
    path = Path(repo_or_path).expanduser()
    if path.is_dir():
        return path
    text = str(repo_or_path)
    if isinstance(repo_or_path, Path) or text.startswith(("/", ".", "~")) or text.count("/") != 1:
        raise FileNotFoundError(f"{text!r} is neither a folder here nor a repository on the Hub (owner/name).")
    check_repo_id(text)
    return None


def _local_ids(folder: Path) -> list[str]:
    return sae_folders(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _choose(sae_id: str | None, known: Sequence[str], where: str) -> str:
    if not known:
        raise ValueError(_no_sae(where))
    if sae_id is None and len(known) == 1:
        return known[0]
    if sae_id is not None and sae_id.strip("/") in known:
        return sae_id.strip("/")
    listed = ", ".join(known[:20]) + ", ..." * (len(known) > 20)
    raise ValueError(
        f"{where} holds {len(known)} SAEs, say which by sae_id: {listed}"
        if sae_id is None
        else f"{where} has no SAE {sae_id!r}; it has: {listed}"
    )


def _no_sae(where: str) -> str:
    return f"{where} holds no SAE (a folder with {SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME})."
