"""SAEs by name: folders, releases of SAELens' directory, repositories on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import SAE

from sae_lens_afa.hub.load import list_saes, load
from sae_lens_afa.loading.names import first_line, near
from sae_lens_afa.loading.saes import load_sae

_LISTED = 8  # names in a message


def load_saes(
    paths: Sequence[str | Path], release: str | None = None, sae_ids: Sequence[str] = (), device: str = "cpu"
) -> dict[str, SAE[Any]]:
    """Load SAEs by a name: the folder's, or the id in the release.

    Args:
        paths: Folders of saved SAEs, or of checkpoints of their training.
        release: A release of SAELens' directory, or a repository on the Hub (owner/name).
        sae_ids: Which SAEs of it; of a repository with only one, none is needed.
        device: cpu, cuda, ...

    Raises:
        FileNotFoundError: a folder without an SAE.
        ValueError: an unknown release or id (the message lists those that are near, or all), or a damaged folder.
        OSError: it cannot be downloaded.

    Example:
        >>> import sae_lens_afa as afa
        >>> _ = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16)).save_inference_model("runs/sae")
        >>> list(afa.hub.load_saes(["runs/sae"]))
        ['sae']
    """
    if release is None and sae_ids:
        raise ValueError("sae_id names an SAE of a release: give release too.")
    ids = [] if release is None else [(release, sae_id) for sae_id in _known_ids(release, sae_ids)]
    saes: dict[str, SAE[Any]] = {}
    for path in map(Path, paths):
        name = path.name if path.name not in saes and path.name else str(path)
        saes[name] = load_sae(path, device, where=f"sae {path}")
    for name, sae_id in ids:
        saes[sae_id] = _from_release(name, sae_id, device)
    return saes


def _from_release(release: str, sae_id: str, device: str) -> SAE[Any]:
    if release not in get_pretrained_saes_directory():
        return load(release, sae_id, device=device)
    try:
        return SAE.from_pretrained(release, sae_id, device=device)
    except OSError as error:
        raise OSError(f"release {release}, sae_id {sae_id} cannot be loaded: {first_line(error)}") from error


def _known_ids(release: str, sae_ids: Sequence[str]) -> list[str]:
    """Return the ids that are meant; of a repository on the Hub with one SAE, that one.

    Raises:
        ValueError: a release or an id that does not exist; the message says which do.
        HubError: a repository that cannot be read.
    """
    directory = get_pretrained_saes_directory()
    if release not in directory and "/" not in release:
        raise ValueError(f"release {release!r} is not known to SAELens{near(release, directory)}.")
    known = list(directory[release].saes_map) if release in directory else list_saes(release)
    if not known:
        raise ValueError(f"release {release} holds no SAE.")
    listed = f"one of {len(known)}: {', '.join(known[:_LISTED])}{', ...' * (len(known) > _LISTED)}"
    if not sae_ids and len(known) > 1:
        raise ValueError(f"release {release} needs sae_id, {listed}")
    for sae_id in sae_ids:
        if sae_id not in known:
            raise ValueError(f"sae_id {sae_id!r} is not in release {release}{near(sae_id, known)}; give {listed}")
    return list(sae_ids) or known
