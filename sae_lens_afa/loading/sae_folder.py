"""Checks of an SAE's folder: do its config and its weights fit each other? Before anything is allocated.

SAELens is imported where an SAE is built, not where its config is read: that takes seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.files import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, read_object, sha256_of

if TYPE_CHECKING:
    import torch
    from sae_lens.saes.sae import SAE

# As `sha256sum` writes it, so that `sha256sum --check` reads it.
SHA256_FILENAME = f"{SAE_WEIGHTS_FILENAME}.sha256"
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_config(path: Path, where: str) -> dict[str, Any]:
    """Return the SAE's config of a cfg.json, with the fields that older versions of SAELens left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a config; `where` names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{where} has no {SAE_CFG_FILENAME}: give the folder of a saved SAE.")
    cfg = read_object(path, where)
    if not _is_of_version_6(cfg, where):
        cfg = _completed(cfg, where)
    for name in ("d_in", "d_sae"):
        if not isinstance(cfg.get(name), int) or isinstance(cfg[name], bool) or cfg[name] < 1:
            raise ValueError(f"{where}: {name} in {SAE_CFG_FILENAME} must be an integer >= 1, got {cfg.get(name)!r}.")
    return cfg


def _completed(cfg: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a config of an older SAELens with the fields that it left out."""
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    if "architecture" in cfg and cfg["architecture"] not in list(SAE_TRAINING_CLASS_REGISTRY):
        check_architecture(cfg, where)
    try:
        return handle_config_defaulting(cfg)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: {SAE_CFG_FILENAME} is no config that SAELens reads ({error!r}).") from error


def _is_of_version_6(cfg: dict[str, Any], where: str) -> bool:
    """Return whether a config was written by SAELens 6 or later, which leaves no field out."""
    metadata = cfg.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: metadata in {SAE_CFG_FILENAME} must be an object, got {metadata!r:.60}.")
    version = cfg.get("sae_lens_version") or metadata.get("sae_lens_version")
    if not version:
        return False
    major = re.match(r"\d+", str(version))
    if major is None:
        raise ValueError(f"{where}: sae_lens_version in {SAE_CFG_FILENAME} is no version: {version!r:.60}.")
    return int(major[0]) >= 6


def is_training_form(cfg: dict[str, Any]) -> bool:
    """Return whether a config is that of a training SAE: those have SAELens' initialisation among their fields."""
    return "decoder_init_norm" in cfg


def check_architecture(cfg: dict[str, Any], where: str, *, training: bool = False) -> None:
    """Raise ValueError for an architecture that SAELens does not know at this point."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    registry = SAE_TRAINING_CLASS_REGISTRY if training else SAE_CLASS_REGISTRY
    name: Any = cfg.get("architecture")  # of an edited file, anything: a list cannot be looked up in a dictionary
    if name in list(registry):
        return
    if name in list(SAE_TRAINING_CLASS_REGISTRY):
        raise ValueError(
            f"{where} is a training checkpoint of architecture {name!r}: load it with TrainingSAE.load_from_disk, or"
            " save it for use with its save_inference_model."
        )
    raise ValueError(
        f"{where} has architecture {name!r}, which is not registered: import the package that brings it first."
        f" Known here: {', '.join(sorted(registry))}."
    )


def read_header(path: Path, where: str) -> dict[str, tuple[str, list[int]]]:
    """Return dtype and shape of each tensor, from the file's header; no tensor is read and no code can run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{where} has no {path.name}: give the folder of a saved SAE.")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            return {name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(
            f"{where}: {path.name} is not a whole safetensors file ({error}); it is damaged, or of another format"
            " under this name. Get it anew."
        ) from error


def check_fit(cfg: dict[str, Any], header: dict[str, tuple[str, list[int]]], where: str) -> None:
    """Refuse weights that disagree with their config.

    Raises:
        ValueError: naming the tensor and both shapes.
    """
    from sae_lens.registry import SAE_CLASS_REGISTRY

    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    expected = {"W_enc": [d_in, d_sae], "W_dec": [d_sae, cfg.get("d_out") or d_in]}
    for name, shape in expected.items():
        if name in header and header[name][1] != shape:
            _refuse(name, header[name][1], shape, where)
    sae_class, config_class = SAE_CLASS_REGISTRY[cfg["architecture"]]
    try:
        empty: SAE[Any] = sae_class(config_class.from_dict({**cfg, "device": "meta"}))
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {SAE_CFG_FILENAME} is no config of {cfg['architecture']!r}: {error}") from error
    for name, tensor in empty.state_dict().items():
        if name in header and header[name][1] != list(tensor.shape):
            _refuse(name, header[name][1], list(tensor.shape), where)


def _refuse(name: str, found: list[int], expected: list[int], where: str) -> None:
    """Raise ValueError for a tensor of another shape than the config's."""
    raise ValueError(
        f"{where}: weights and config disagree: {name} has shape {found} in {SAE_WEIGHTS_FILENAME},"
        f" {SAE_CFG_FILENAME} asks for {expected}."
    )


def load_folder(folder: Path, device: str, dtype: str | torch.dtype | None, where: str) -> SAE[Any]:
    """Return the SAE of a folder; in the weights' own dtype unless one is given.

    Raises:
        FileNotFoundError, ValueError: the config or the weights are missing, damaged, or disagree.
    """
    from sae_lens.saes.sae import SAE

    cfg = read_config(folder / SAE_CFG_FILENAME, where)
    check_architecture(cfg, where)
    weights = folder / SAE_WEIGHTS_FILENAME
    header = read_header(weights, where)
    check_fit(cfg, header, where)
    _check_sha256(folder, where)
    name = _dtype_name(dtype) if dtype is not None else own_dtype(header)
    try:
        return SAE.load_from_disk(folder, device=str(device), dtype=name)
    except (RuntimeError, ValueError) as error:  # of tensors that are missing or that the architecture does not have
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: {SAE_WEIGHTS_FILENAME} does not fit {cfg['architecture']!r}: {said}") from error


def own_dtype(header: dict[str, tuple[str, list[int]]]) -> str | None:
    """Return the dtype of W_dec, else that of the first tensor; None, which leaves it to the config, of a rare one."""
    dtypes = [header[name][0] for name in ("W_dec", *header) if name in header]
    return next((_SAFETENSORS_DTYPES[dtype] for dtype in dtypes if dtype in _SAFETENSORS_DTYPES), None)


def _dtype_name(dtype: str | torch.dtype) -> str:
    """Return the name of a dtype that SAELens knows."""
    from sae_lens.constants import DTYPE_TO_STR

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_TO_STR.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_TO_STR.values())}, got {dtype!r}.")
    return name


def write_sha256(folder: Path, digest: str) -> None:
    """Note the weights' digest beside them, in the format of `sha256sum`."""
    (folder / SHA256_FILENAME).write_text(f"{digest}  {SAE_WEIGHTS_FILENAME}\n")


def _check_sha256(folder: Path, where: str) -> None:
    """Refuse weights that are not those whose digest was noted beside them, as `pull` does."""
    note = folder / SHA256_FILENAME
    if note.is_file() and note.read_text().split()[:1] != [sha256_of(folder / SAE_WEIGHTS_FILENAME)]:
        raise ValueError(
            f"{where}: {SAE_WEIGHTS_FILENAME} is not what {SHA256_FILENAME} says: it is damaged, or it was changed."
            f" Pull it anew; or delete {SHA256_FILENAME} if the change is yours."
        )
