"""Places of SAEs: folders here and repositories on the Hub, told apart, and the id that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_lens_afa.files import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens_afa.hub._remote import Snapshot, check_repo_id, fetch, in_folder, read_snapshot, sae_folders
from sae_lens_afa.loading import sae_folder


def locate(
    repo_or_path: str | Path, sae_id: str | None, revision: str | None, token: str | bool | None
) -> tuple[Path, str]:
    """Return the local folder of an SAE, downloaded if need be, and its name in messages."""
    local = local_folder(repo_or_path)
    if local is not None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for the Hub, but {local} is a folder: leave it out.")
        folder = local / choose(sae_id, local_ids(local), str(local))
        return folder, str(folder)
    snapshot = read_snapshot(str(repo_or_path), revision, token)
    chosen = choose(sae_id, snapshot.sae_ids(), snapshot.label)
    return fetch_sae(snapshot, chosen), f"{chosen} of {snapshot.repo_id}"


def fetch_sae(snapshot: Snapshot, sae_id: str) -> Path:
    """Return the folder of a downloaded SAE. Its config comes first: it may be a reason not to download the weights."""
    where = f"{sae_id} of {snapshot.repo_id}"
    path = fetch(snapshot, in_folder(sae_id, SAE_CFG_FILENAME))
    sae_folder.check_architecture(sae_folder.read_config(path, where), where)
    return fetch(snapshot, in_folder(sae_id, SAE_WEIGHTS_FILENAME)).parent


def local_folder(repo_or_path: str | Path) -> Path | None:
    """Return the folder that is meant, or None for a repository.

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


def local_ids(folder: Path) -> list[str]:
    """Return the ids of the SAEs below a folder, sorted."""
    return sae_folders(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def choose(sae_id: str | None, known: Sequence[str], where: str) -> str:
    """Return the SAE that is meant: the given one, or the only one.

    Raises:
        ValueError: there is no such SAE, or none, or several and none is given.
    """
    if not known:
        raise ValueError(no_sae(where))
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


def no_sae(where: str) -> str:
    """Return the message of a place without SAEs."""
    return f"{where} holds no SAE (a folder with {SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME})."
