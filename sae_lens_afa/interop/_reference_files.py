"""Files of the AFA authors' training code, sae.pt and config.json, read without trusting them."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS, CONFIG = "sae.pt", "config.json"
SAE_TYPES = ("topafa", "topk", "batchtopk")
_INTEGERS = ("act_size", "dict_size")
_REQUIRED = (*_INTEGERS, "sae_type", "input_unit_norm", "hook_point", "model_name")
# Fields that a type needs beyond these: for its selection, and to describe its training.
_REQUIRED_OF = {
    "topafa": ("afa_coeff", "aux_penalty", "top_k_aux"),
    "topk": ("top_k",),
    "batchtopk": ("top_k", "batch_size"),
}
_POSITIVE_INTEGERS = (*_INTEGERS, "top_k_aux", "seq_len", "batch_size")
# Settings that the metadata keep; not device, dtype, paths or names of private projects.
_TOLD = (
    "seed", "batch_size", "lr", "num_tokens", "l1_coeff", "beta1", "beta2", "max_grad_norm", "seq_len", "top_k",
    "top_k_aux", "n_batches_to_dead", "aux_penalty", "afa_coeff", "input_unit_norm", "sae_type",
)  # fmt: skip


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A checkpoint of the reference implementation, checked.

    Attributes:
        config: config.json; the fields that are used are there and of the right type.
        weights: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in]; finite, one floating dtype, on the CPU.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def told(self) -> dict[str, Any]:
        """Return the settings of its training that are kept in the metadata."""
        return {name: self.config[name] for name in _TOLD if name in self.config and _is_plain(self.config[name])}


def read_reference_checkpoint(folder: Path) -> ReferenceCheckpoint:
    """Read and check a checkpoint; no code in it is run.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: what is wrong with which file, field or tensor.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give one with {WEIGHTS} and {CONFIG}.")
    if missing := [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}; it needs {WEIGHTS} and {CONFIG}.")
    config = _read_config(folder / CONFIG)
    return ReferenceCheckpoint(config, _read_weights(folder / WEIGHTS, config))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object of settings, got a {type(config).__name__}.")
    if missing := [name for name in _REQUIRED if name not in config]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it needs {', '.join(_REQUIRED)}.")
    sae_type = config["sae_type"]
    if sae_type not in SAE_TYPES:
        raise ValueError(f"{path}: sae_type must be one of {', '.join(SAE_TYPES)}, got {sae_type!r}.")
    if missing := [name for name in _REQUIRED_OF[sae_type] if name not in config]:
        raise ValueError(f"{path} has no {', '.join(missing)}, which a {sae_type} checkpoint needs.")
    # A topafa checkpoint says top_k = 0.
    for name in _POSITIVE_INTEGERS if sae_type == "topafa" else (*_POSITIVE_INTEGERS, "top_k"):
        if name in config:
            _check(path, config, name, "an integer >= 1", _is_positive_integer(config[name]))
    if sae_type != "topafa":
        _check(
            path, config, "top_k", f"at most dict_size = {config['dict_size']}", config["top_k"] <= config["dict_size"]
        )
    for name in ("hook_point", "model_name"):
        _check(path, config, name, "a name", isinstance(config[name], str) and config[name] != "")
    _check(path, config, "input_unit_norm", "true or false", isinstance(config["input_unit_norm"], bool))
    for name in ("afa_coeff", "aux_penalty"):
        if name in config:
            number = _is_plain(config[name]) and not isinstance(config[name], str | bool)
            _check(path, config, name, "a number >= 0", number and config[name] >= 0)
    return config


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check(path: Path, config: Mapping[str, Any], name: str, expected: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{path}: {name} must be {expected}, got {config.get(name)!r}.")


def _read_weights(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    state = _load(path)
    d_in, d_sae = config["act_size"], config["dict_size"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "b_enc": (d_sae,)}
    if missing := sorted(set(shapes) - set(state)):
        raise ValueError(f"{path} has no {', '.join(missing)}; it must hold {', '.join(shapes)}.")
    if unknown := sorted(set(map(str, state)) - set(shapes)):
        raise ValueError(f"{path} holds {', '.join(unknown)} too; it must hold {', '.join(shapes)} and nothing else.")
    for name, shape in shapes.items():
        _check_tensor(path, name, state[name], shape)
    if len(dtypes := {tensor.dtype for tensor in state.values()}) > 1:
        raise ValueError(f"{path}: the tensors must be of one dtype, got {sorted(map(str, dtypes))}.")
    if state["b_enc"].any():
        warnings.warn(
            f"{path}: b_enc is not zero. The reference implementation never uses it, so it is left out: the outputs are"
            " those that it gives. If other code wrote this checkpoint, compare them.",
            stacklevel=2,
        )
    return {name: state[name].detach().contiguous() for name in ("W_enc", "W_dec", "b_dec")}


def _load(path: Path) -> dict[Any, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors (a pickle, which could run code): it is not loaded."
            " Write it with torch.save(sae.state_dict(), ...)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is damaged or not a PyTorch file; copy or save it again.") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a state dict, got a {type(state).__name__}; save sae.state_dict().")
    return state


def _check_tensor(path: Path, name: str, tensor: object, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
        what = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{path}: {name} must be a dense floating-point tensor, got {what}.")
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG} (act_size, dict_size) asks for {list(shape)}."
        )
    # An expanded or meta tensor is a few bytes that claim any size.
    if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{path}: {name} claims shape {list(shape)}, but the file does not hold so many numbers.")
    if bad := int((~tensor.isfinite()).sum()):
        raise ValueError(f"{path}: {name} holds {bad} NaN or infinite values; the training run has diverged.")
