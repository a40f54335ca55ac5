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
from sae_lens_afa.hub._locate import choose, fetch_sae, local_folder, local_ids, locate, no_sae
from sae_lens_afa.hub._remote import fetch, in_folder, read_snapshot
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
    """Load an SAE of any registered architecture, from a repository on the Hub or from a folder.

    From the Hub, the files come through huggingface_hub's cache and are compared with the digests that the Hub states:
    a damaged download is repeated and never used. Config and weights are checked against each other before anything
    is allocated. Without a network, what the cache has is used, with a warning.

    Args:
        repo_or_path: "owner/name", or a local folder.
        sae_id: Its folder in the repository; "." is the repository or folder itself. None takes the
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

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> _ = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16)).save_inference_model("runs/a")
        >>> sae = afa.load("runs", "a")  # or afa.load("owner/name", "a")
        >>> sae(torch.randn(5, 8)).shape
        torch.Size([5, 8])
    """
    from sae_lens_afa.loading.models import check_device

    check_device(device)
    folder, where = locate(repo_or_path, sae_id, revision, token)
    return sae_folder.load_folder(folder, device, dtype, where)


def list_saes(repo_or_path: str | Path, revision: str | None = None, *, token: str | bool | None = None) -> list[str]:
    """List the ids of the SAEs in a repository or folder, sorted; "." where it is itself one.

    Raises:
        HubError: the repository, the revision or the network.
        FileNotFoundError: no such folder.

    Example:
        >>> import sae_lens_afa as afa
        >>> _ = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16)).save_inference_model("runs/a")
        >>> afa.list_saes("runs")  # or afa.list_saes("owner/name")
        ['a']
    """
    local = local_folder(repo_or_path)
    if local is not None:
        return local_ids(local)
    return read_snapshot(str(repo_or_path), revision, token).sae_ids()


@dataclass(frozen=True)
class RepoInfo:
    """Contents of a repository or folder; `str()` is a table.

    Attributes:
        name: Repository or folder.
        commit: Commit that was read; None for a folder.
        saes: Configuration, training settings and metrics by id.

    Example:
        >>> import sae_lens_afa as afa
        >>> _ = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16)).save_inference_model("runs/a")
        >>> afa.hub.info("runs").saes["a"].describe()["d_sae"]
        '16'
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
    """Tell what is known of the SAEs of a repository or folder, without downloading weights.

    Args:
        repo_or_path: "owner/name", or a local folder.
        sae_id: Of one SAE only.
        revision: Branch, tag or commit on the Hub.
        token: None uses the one you are logged in with.

    Raises:
        HubError, FileNotFoundError, ValueError: as `load`.

    Example:
        >>> import sae_lens_afa as afa
        >>> _ = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16)).save_inference_model("runs/a")
        >>> list(afa.hub.info("runs").saes)  # or afa.hub.info("owner/name"); print it for all that is known
        ['a']
    """
    local = local_folder(repo_or_path)
    if local is not None:
        ids = [choose(sae_id, local_ids(local), str(local))] if sae_id is not None else local_ids(local)
        return RepoInfo(str(local), None, {name: read_facts(local / name, str(local / name)) for name in ids})
    snapshot = read_snapshot(str(repo_or_path), revision, token)
    ids = [choose(sae_id, snapshot.sae_ids(), snapshot.label)] if sae_id is not None else snapshot.sae_ids()
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

    Example:
        >>> import sae_lens_afa as afa
        >>> folders = afa.hub.pull("owner/name", "here", ["blocks.6.hook_resid_pre"])  # doctest: +SKIP
    """
    snapshot = read_snapshot(repo_id, revision, token)
    known = snapshot.sae_ids()
    chosen = [choose(sae_id, known, snapshot.label) for sae_id in sae_ids] or known
    if not chosen:
        raise ValueError(no_sae(snapshot.label))
    folders = {sae_id: Path(output) / sae_id for sae_id in chosen}
    for folder in folders.values():
        check_output_folder(folder, overwrite=overwrite)
    for sae_id, folder in folders.items():
        source = fetch_sae(snapshot, sae_id)
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
