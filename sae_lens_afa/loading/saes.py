"""SAEs from folders, and from checkpoints of their training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.sae import SAE, TrainingSAE

from sae_lens_afa.files import read_object
from sae_lens_afa.loading import sae_folder
from sae_lens_afa.loading.inference import inference_view
from sae_lens_afa.loading.models import check_device


def load_sae(folder: str | Path, device: str = "cpu", dtype: Any = None, *, where: str | None = None) -> SAE[Any]:
    """Return the SAE of a folder, in inference form; a training checkpoint becomes what it would be saved as.

    Args:
        folder: What `save_model`, a runner or `pull` wrote: an SAE, or a checkpoint of its training, whose scaling of
            the input ("expected_average_only_in") is folded into the weights as at the end of training.
        device: cpu, cuda, ...
        dtype: float32, bfloat16, ...; None keeps that of the weights.
        where: Name of the folder in messages; its path if None.

    Raises:
        FileNotFoundError: no folder, or one without config or weights.
        ValueError: a config or weights that are damaged, disagree, or are of an architecture that is not registered.
    """
    check_device(device)
    folder = Path(folder)
    where = str(folder) if where is None else where
    if not folder.is_dir():
        raise FileNotFoundError(f"{where} is not a folder; give the folder of a saved SAE.")
    if missing := [name for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME) if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{where} has no {', '.join(missing)}; give the folder of a saved SAE.")
    cfg = sae_folder.read_config(folder / SAE_CFG_FILENAME, where)
    if not sae_folder.is_training_form(cfg):
        return sae_folder.load_folder(folder, device, dtype, where)
    view = inference_view(load_checkpoint(folder, device, where=where)).requires_grad_(True)
    if view.cfg.reshape_activations == "hook_z":
        view.turn_on_forward_pass_hook_z_reshaping()
    return view if dtype is None else view.to(dtype=getattr(torch, str(dtype).removeprefix("torch.")))


def load_checkpoint(folder: Path, device: str = "cpu", *, where: str | None = None) -> TrainingSAE[Any]:
    """Return the training SAE of a checkpoint, with the scaling that its trainer keeps folded into the weights.

    Raises:
        FileNotFoundError, ValueError: as `load_sae`.
    """
    where = str(folder) if where is None else where
    cfg = sae_folder.read_config(folder / SAE_CFG_FILENAME, where)
    sae_folder.check_architecture(cfg, where, training=True)
    sae_folder.read_header(folder / SAE_WEIGHTS_FILENAME, where)
    try:
        sae: TrainingSAE[Any] = TrainingSAE.load_from_disk(folder, device=device)
    except (RuntimeError, ValueError, KeyError) as error:  # tensors that are missing, of another shape, or not known
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: {SAE_WEIGHTS_FILENAME} does not fit {SAE_CFG_FILENAME}: {said}") from error
    scaling = folder / ACTIVATION_SCALER_CFG_FILENAME
    factor = read_object(scaling, where).get("scaling_factor") if scaling.is_file() else None
    if factor is not None and sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(factor)
    return sae


def shared_metadata(saes: Mapping[str, SAE[Any]], field: str, default: Any = None) -> Any:
    """Return the value of a metadata field that all SAEs agree on; `default` where none has it.

    Raises:
        ValueError: they do not agree.
    """
    values = {name: _comparable(getattr(sae.cfg.metadata, field)) for name, sae in saes.items()}
    values = {name: default if value is None else value for name, value in values.items()}
    first = next(iter(values.values()))
    if any(value != first for value in values.values()):
        raise ValueError(f"the SAEs were trained with different {field}: {values}; give it, or judge them one by one.")
    return first


def _comparable(value: Any) -> Any:
    """Return a tuple as a list: JSON has no tuples."""
    return list(value) if isinstance(value, tuple) else value
