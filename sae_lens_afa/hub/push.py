"""Pushing SAEs to the Hub: everything in one commit, compared afterwards, or nothing."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from sae_lens.saes.sae import SAE

from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.files import FEATURES_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens_afa.hub._bundle import Metrics, bundle, check_metrics, check_source
from sae_lens_afa.hub._card import CardOptions, write_card
from sae_lens_afa.hub._contents import FILENAMES, PLOT_FILENAME, SAEFacts, read_facts, remote_facts
from sae_lens_afa.hub._errors import HubError, attempt
from sae_lens_afa.hub._remote import (
    ROOT,
    RemoteFile,
    Snapshot,
    check_repo_id,
    fetch,
    in_folder,
    leaves_folder,
)
from sae_lens_afa.hub._target import find_target, prepare

_CARD_FILENAME = "README.md"


def push_to_hub(
    saes: Mapping[str, SAE[Any] | str | Path],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    metrics: Mapping[str, Metrics] | None = None,
    plots: bool | Mapping[str, str | Path] = True,
    features: Mapping[str, str | Path] | None = None,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    base_model: str | Sequence[str] | None = None,
    commit_message: str | None = None,
) -> str:
    """Put SAEs into a repository on the Hub, with a model card: in one commit, or not at all.

    The repository is created if it is missing. SAEs that are there stay, and stay in the card; one of the same id is
    replaced, together with its metrics. Uploaded files are compared with the local ones before anything is called
    done. After a failure the repository is as it was; pushing again uploads only what is missing.

    Args:
        saes: By id, the SAE's folder in the repository (may contain "/"; "." is the repository itself): an SAE, a
            training SAE (saved in inference form), or the folder of either.
        repo_id: "owner/name".
        private: Of a new repository; an existing one must be so already. None: public if new.
        token: None uses the one you are logged in with (`hf auth login`, HF_TOKEN).
        revision: Branch to commit to, created from main if missing; None is main.
        tag: Tag for the commit; it must not exist.
        create_pr: Open a pull request instead of committing; the repository need not be yours.
        metrics: By id, an `AFAResult`, or a dictionary with such values; shown in the card.
        plots: Draw the ZF plot of each `AFAResult` that has its tokens. Or PNG files by id.
        features: By id, a page that `afa.features` wrote, or its folder; the card links it.
        license: For example "mit"; None keeps the card's.
        datasets: Hub ids; None takes those of the SAEs' metadata.
        base_model: Hub id or ids; None takes those of the SAEs' metadata.
        commit_message: None lists the ids.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        HubError: no token, no right to write, the network; somebody committed meanwhile; an upload that arrived
            damaged. The message says what to do.
        FileNotFoundError, TypeError, ValueError: what is given is not an SAE, is damaged, or does not fit.

    Example:
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=64, d_sae=256))
        >>> afa.push_to_hub({"blocks.6.hook_resid_pre": sae}, "me/saes", license="mit")  # doctest: +SKIP
        'https://huggingface.co/me/saes/commit/...'
    """
    metrics, pages = metrics or {}, {sae_id: _page_in(Path(place)) for sae_id, place in (features or {}).items()}
    _check_request(saes, repo_id, metrics, plots, pages, tag=tag, create_pr=create_pr)
    api = HfApi(token=token)
    target = find_target(api, repo_id, private=private, revision=revision, tag=tag, create_pr=create_pr)
    with tempfile.TemporaryDirectory(prefix="sae-lens-afa-") as temporary:
        folders = {sae_id: Path(temporary) / str(i) for i, sae_id in enumerate(saes)}
        for sae_id, folder in folders.items():
            bundle(saes[sae_id], folder, sae_id, metrics.get(sae_id), plot=plots is True)
            if isinstance(plots, Mapping) and sae_id in plots:
                shutil.copyfile(plots[sae_id], folder / PLOT_FILENAME)
            if sae_id in pages:
                shutil.copyfile(pages[sae_id], folder / FEATURES_FILENAME)
        base = prepare(api, target, private=private)
        files = {in_folder(i, path.name): path for i, folder in folders.items() for path in sorted(folder.iterdir())}
        card = Path(temporary) / _CARD_FILENAME
        card.write_text(_card(base, folders, CardOptions(license, datasets, base_model)), encoding="utf-8")
        files[_CARD_FILENAME] = card
        operations = [
            *(CommitOperationAdd(path, str(local)) for path, local in files.items()),
            *(CommitOperationDelete(path) for path in _stale(base, files)),
        ]
        message = commit_message or _message(saes)
        commit = attempt(
            lambda: api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr,
                parent_commit=base.commit,
            ),
            f"cannot push to {repo_id} (pushing again is safe and uploads only what is missing)",
            retry=False,
        )  # fmt: skip
        _compare(api, repo_id, commit, files)
    if tag is not None:
        doing = f"commit {commit.oid[:8]} is in {repo_id}, but cannot be tagged {tag!r}"
        oid = commit.oid
        attempt(lambda: api.create_tag(repo_id, tag=tag, revision=oid, exist_ok=False), doing)
    return str(commit.pr_url if create_pr and commit.pr_url else commit.commit_url)


def _check_request(
    saes: Any,
    repo_id: str,
    metrics: Mapping[str, Any],
    plots: bool | Mapping[str, str | Path],
    pages: Mapping[str, Path],
    *,
    tag: str | None,
    create_pr: bool,
) -> None:
    """Refuse what can be known to be wrong without asking the Hub."""
    check_repo_id(repo_id)
    if not isinstance(saes, Mapping):
        raise TypeError(f"saes must map ids to SAEs or folders, got a {type(saes).__name__}.")
    if not saes:
        raise ValueError("no SAEs to push: the mapping is empty.")
    for sae_id, source in saes.items():
        _check_id(sae_id)
        check_source(source, sae_id)
    if tag is not None and create_pr:
        raise ValueError("tag and create_pr exclude each other: tag the commit when the pull request is merged.")
    of = {"metrics": metrics, "plots": plots if isinstance(plots, Mapping) else {}, "features": pages}
    for name, mapping in of.items():
        if unknown := sorted(set(mapping) - set(saes)):
            raise ValueError(f"{name} are given for {unknown}, which are not among the SAEs: {sorted(saes)}.")
    for sae_id, measured in metrics.items():
        if not isinstance(measured, AFAResult):
            check_metrics(measured, sae_id)
    for sae_id, path in of["plots"].items():
        if not Path(path).is_file() or Path(path).suffix != ".png":
            raise ValueError(f"the plot of {sae_id} must be a .png file, got {str(path)!r}.")
    for sae_id, path in pages.items():
        if not path.is_file() or path.suffix != ".html":
            raise ValueError(
                f"the features of {sae_id} must be a page of afa.features or its folder, got {str(path)!r}."
            )


def _page_in(place: Path) -> Path:
    """Return the page of features in a folder, or the file that is given."""
    return place / FEATURES_FILENAME if place.is_dir() else place


def _check_id(sae_id: object) -> None:
    if sae_id == ROOT:
        return
    is_path = isinstance(sae_id, str) and not leaves_folder(sae_id) and re.fullmatch(r"[\w./ -]+", sae_id)
    if (
        not is_path
        or str(sae_id).rpartition("/")[2] in (*FILENAMES, _CARD_FILENAME)
        or str(sae_id) != str(sae_id).strip()
    ):
        raise ValueError(
            f"sae_id {sae_id!r} cannot be a folder of the repository: use letters, digits, '.', '-', '_' and '/'"
            ' ("blocks.6.hook_resid_pre"), or "." for the repository itself.'
        )


def _card(base: Snapshot, folders: Mapping[str, Path], options: CardOptions) -> str:
    """Return the card of what is in the repository already and what is pushed now."""
    there = base.sae_ids()
    facts = {sae_id: _facts_there(base, sae_id) for sae_id in there if sae_id not in folders}
    for sae_id, folder in folders.items():
        new = read_facts(folder, sae_id)
        weights = base.files.get(in_folder(sae_id, SAE_WEIGHTS_FILENAME))
        if sae_id in there and weights is not None and weights.matches(folder / SAE_WEIGHTS_FILENAME):
            new = new.completed_by(_facts_there(base, sae_id))  # the same SAE: what was known of it stays
        facts[sae_id] = new
    existing = fetch(base, _CARD_FILENAME).read_text(encoding="utf-8") if _CARD_FILENAME in base.files else None
    return write_card(existing, base.repo_id, dict(sorted(facts.items())), options)


def _facts_there(base: Snapshot, sae_id: str) -> SAEFacts:
    try:
        return remote_facts(base, sae_id)
    except ValueError as error:
        warnings.warn(f"{error} The card lists it without details.", stacklevel=4)
        return SAEFacts({}, {}, {})


def _stale(base: Snapshot, files: Mapping[str, Path]) -> list[str]:
    """List files beside weights that are replaced now: metrics of others must not stay beside the new ones."""
    stale: list[str] = []
    for path, local in files.items():
        folder, _, name = path.rpartition("/")
        if name == SAE_WEIGHTS_FILENAME and path in base.files and not base.files[path].matches(local):
            beside = (in_folder(folder or ROOT, other) for other in FILENAMES)
            stale += [other for other in beside if other in base.files and other not in files]
    return stale


def _compare(api: HfApi, repo_id: str, commit: CommitInfo, files: Mapping[str, Path]) -> None:
    """Hold the commit to what was to be pushed.

    Raises:
        HubError: a file is missing there, or has another digest.
    """
    doing = f"commit {commit.oid[:8]} is in {repo_id}, but cannot be compared with what was pushed"
    there = attempt(lambda: api.get_paths_info(repo_id, list(files), revision=commit.oid), doing)
    remote = {
        info.path: RemoteFile(info.path, info.size, info.lfs.sha256 if info.lfs else None, info.blob_id)
        for info in there
        if isinstance(info, RepoFile)
    }
    wrong = [path for path, local in files.items() if path not in remote or not remote[path].matches(local)]
    if wrong:
        raise HubError(
            f"commit {commit.oid[:8]} of {repo_id} does not hold what was pushed: {', '.join(wrong)} differ."
            " Do not use it; push again."
        )


def _message(saes: Mapping[str, Any]) -> str:
    return f"Push {', '.join(saes)}" if len(saes) <= 3 else f"Push {len(saes)} SAEs"
