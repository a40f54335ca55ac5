"""Checks with one wording for all architectures: of configs before training, of inputs and weights on use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sae_lens.saes.sae import SAEConfig
from torch import Tensor

_NORMALIZATIONS = ("none", "expected_average_only_in", "layer_norm")


def check_shape_fields(cfg: SAEConfig) -> None:
    """Refuse, in a config, sizes and input options under which norm matching has no meaning.

    Raises:
        ValueError: naming the field, what it is and what it may be.
    """
    name = type(cfg).__name__
    check_integer(cfg, "d_in", at_least=1)
    check_integer(cfg, "d_sae", at_least=1)
    check_layer_norm_width(cfg)
    if not cfg.apply_b_dec_to_input:
        raise ValueError(
            f"{name}.apply_b_dec_to_input must be True, got {cfg.apply_b_dec_to_input!r}: the rule compares with"
            " the norm of x - b_dec, and the encoder reads x - b_dec."
        )
    if cfg.normalize_activations not in _NORMALIZATIONS:
        raise ValueError(
            f"{name}.normalize_activations={cfg.normalize_activations!r} is not supported: it changes the norms that"
            f" the rule compares. Use one of {', '.join(map(repr, _NORMALIZATIONS))}."
        )


def check_layer_norm_width(cfg: SAEConfig) -> None:
    """Raise ValueError for layer_norm of single numbers, which have no standard deviation."""
    if cfg.normalize_activations == "layer_norm" and cfg.d_in < 2:
        raise ValueError(
            f"{type(cfg).__name__}.normalize_activations='layer_norm' needs d_in >= 2, got {cfg.d_in}: one number has"
            " no standard deviation. Give normalize_activations='none'."
        )


def check_integer(cfg: SAEConfig, field: str, *, at_least: int) -> None:
    """Raise ValueError unless the field is an integer of at least `at_least`."""
    value = getattr(cfg, field)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{type(cfg).__name__}.{field} must be an integer >= {at_least}, got {value!r}.")


def check_number(cfg: SAEConfig, field: str, *, positive: bool = False, at_most: float | None = None) -> None:
    """Raise ValueError unless the field is a finite number that is not negative (or is positive), up to `at_most`."""
    value = getattr(cfg, field)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (positive and value == 0):
        raise ValueError(
            f"{type(cfg).__name__}.{field} must be a finite number {'> 0' if positive else '>= 0'}, got {value!r}."
        )
    if at_most is not None and value > at_most:
        raise ValueError(f"{type(cfg).__name__}.{field} must be at most {at_most}, got {value!r}.")


def check_choice(cfg: SAEConfig, field: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the field is one of `choices`."""
    value = getattr(cfg, field)
    if value not in choices:
        raise ValueError(f"{type(cfg).__name__}.{field} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_activations(x: Tensor, d_in: int, *, heads: bool) -> None:
    """Refuse an input that is not activations [..., d_in], or [..., heads, d_head] where `heads`.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: the shape does not fit.
    """
    if not isinstance(x, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the SAE's input must be a tensor of activations, got a {type(x).__name__}.")
    if not x.is_floating_point():
        raise TypeError(
            f"the SAE's input must be floating-point activations, got dtype {x.dtype}"
            " (token ids are not activations: run the model first)."
        )
    if heads:
        if x.ndim < 2 or x.shape[-2] * x.shape[-1] != d_in:
            raise ValueError(
                f"the SAE's input must have shape [..., heads, d_head] with heads * d_head = d_in = {d_in}"
                f" (hook_z), got {list(x.shape)}."
            )
    elif x.ndim == 0 or x.shape[-1] != d_in:
        raise ValueError(
            f"the SAE's input must have shape [..., d_in] with d_in = {d_in} on its last axis, got {list(x.shape)}."
        )


def check_state_dict(state_dict: Mapping[str, Any], expected: Mapping[str, Sequence[int]]) -> None:
    """Refuse weights that disagree with the config they are loaded under.

    Raises:
        ValueError: naming the tensor, the shape found and the shape that the config asks for.
    """
    for name, shape in expected.items():
        found = state_dict.get(name)
        if not isinstance(found, torch.Tensor):
            raise ValueError(
                f"the weights have no tensor {name!r}, which the config needs with shape {list(shape)};"
                f" they have {sorted(state_dict)}."
            )
        if list(found.shape) != list(shape):
            raise ValueError(
                f"weights and config disagree: {name} has shape {list(found.shape)} in the weights,"
                f" the config (d_in, d_sae) asks for {list(shape)}."
            )
    if unknown := sorted(set(state_dict) - set(expected)):
        raise ValueError(
            f"the weights hold {unknown}, which this architecture does not have; it has {sorted(expected)}."
        )
