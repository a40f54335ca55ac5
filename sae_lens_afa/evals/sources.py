"""Where an evaluation's SAEs, model and text come from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import load_dataset, load_from_disk
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.load_model import load_model
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import SAE
from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

from sae_lens_afa._support import text_dataset
from sae_lens_afa.gpt2_folder import load_gpt2_folder

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_saes(paths: Sequence[Path], release: str | None, sae_ids: Sequence[str], device: str) -> dict[str, SAE[Any]]:
    """SAEs by a name: the folder's, or the id in the release.

    Raises:
        FileNotFoundError: a folder without an SAE.
        ValueError: an unknown release or id; the message lists near matches.
    """
    for path in paths:
        check_sae_folder(path)
    if release is not None:
        check_release(release, sae_ids)
    saes: dict[str, SAE[Any]] = {}
    for path in paths:
        name = path.name if path.name not in saes and path.name else str(path)
        saes[name] = SAE.load_from_disk(path, device=device)
    for sae_id in sae_ids if release is not None else ():
        try:
            saes[sae_id] = SAE.from_pretrained(str(release), sae_id, device=device)
        except OSError as error:
            raise OSError(f"--release {release} --sae-id {sae_id} cannot be loaded: {_first_line(error)}") from error
    return saes


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def check_sae_folder(path: Path) -> None:
    """Refuse a folder that holds no SAE.

    Raises:
        FileNotFoundError: naming what is missing.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"--sae {path} is not a folder; give the folder of a saved SAE.")
    if missing := [name for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME) if not (path / name).is_file()]:
        raise FileNotFoundError(f"--sae {path} has no {', '.join(missing)}; give the folder of a saved SAE.")


def check_release(release: str, sae_ids: Sequence[str]) -> None:
    """Refuse a release or an id that SAELens' directory does not have.

    Raises:
        ValueError: with the nearest names.
    """
    directory = get_pretrained_saes_directory()
    if release not in directory:
        if "/" in release and sae_ids:  # a repository on the Hub, which only the Hub knows
            return
        raise ValueError(f"--release {release!r} is not known to SAELens{_near(release, list(directory))}.")
    known = list(directory[release].saes_map)
    if not sae_ids:
        some = ", ".join(known[:4])
        raise ValueError(f"--release {release} needs --sae-id, one of {len(known)}: {some}{', ...' * (len(known) > 4)}")
    for sae_id in sae_ids:
        if sae_id not in known:
            raise ValueError(f"--sae-id {sae_id!r} is not in release {release}{_near(sae_id, known)}.")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    return f"; near matches: {', '.join(near)}" if near else "; no name is near it"


def shared_metadata(saes: dict[str, SAE[Any]], field: str) -> Any:
    """The value of a metadata field that all SAEs agree on.

    Raises:
        ValueError: they do not agree.
    """
    values = {name: getattr(sae.cfg.metadata, field) for name, sae in saes.items()}
    if len(set(values.values())) > 1:
        raise ValueError(f"the SAEs were trained with different {field}: {values}; give it, or judge them one by one.")
    return next(iter(values.values()))


def load_language_model(name: str, saes: dict[str, SAE[Any]], device: str) -> HookedRootModule:
    """The model by its name or from a folder with GPT-2's architecture, loaded as the SAEs ask for.

    Raises:
        ValueError: an unknown name; the message lists near matches.
        OSError: it cannot be downloaded.
    """
    if Path(name).is_dir():
        return load_gpt2_folder(name, device)
    metadata = next(iter(saes.values())).cfg.metadata
    kwargs: Any = metadata.model_from_pretrained_kwargs or {}
    class_name = metadata.model_class_name or "HookedTransformer"
    try:
        return load_model(class_name, name, device, dict(kwargs))
    except ValueError as error:
        # TransformerLens answers an unknown name with all names that it knows.
        near = _near(name, OFFICIAL_MODEL_NAMES) if class_name == "HookedTransformer" else ""
        raise ValueError(f"--model {name!r} cannot be loaded: {_first_line(error)[:80]}{near}") from error
    except OSError as error:
        raise OSError(f"--model {name!r} cannot be loaded: {_first_line(error)}") from error


def load_text_dataset(name: str) -> Any:
    """A Hub dataset's name as it is; a file or folder as a `datasets.Dataset`.

    Raises:
        ValueError: a file of a kind that is not read.
    """
    path = Path(name)
    if path.is_dir():
        return load_from_disk(str(path))
    if not path.is_file():
        return name
    if path.suffix == ".txt":
        return text_dataset([part for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()])
    if path.suffix not in _LOADERS:
        raise ValueError(f"--dataset {name}: only .txt, {', '.join(_LOADERS)} files are read.")
    return load_dataset(_LOADERS[path.suffix], data_files=str(path), split="train")
