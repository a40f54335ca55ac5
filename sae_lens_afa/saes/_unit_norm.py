"""Decoder rows kept at norm 1 during training: the constraint of the reference implementation.

SAELens' trainer has no place between backward and step, so the constraint sits on the parameter itself, as a
hook that runs when W_dec's gradient is complete.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor

# Rows as near to 1 as float32 normalisation leaves them are taken to be unit.
_ROUNDING = 1e-6
# Rows at a time on a CPU, so that the products stay in cache and take no fresh memory.
_CPU_BLOCK = 256


def arm_unit_norm(sae: TrainingSAE[Any], *, fold: bool) -> None:
    """Keep the rows of `sae.W_dec` at norm 1 from now on, whenever `sae` is in training mode.

    After each backward pass the part of W_dec's gradient that is parallel to its rows is removed and the rows
    are normalised, before the optimizer steps; rows that are zero stay zero. Arming twice does nothing.

    Args:
        sae: A training SAE with parameters W_enc [d_in, d_sae] and W_dec [d_sae, d_in].
        fold: Move the norms that the rows have now into W_enc, which changes no output. False for weights that
            continue a run: what they deviate from 1 is that run's last optimizer step.
    """
    hooks: Mapping[int, Any] = getattr(sae.W_dec, "_post_accumulate_grad_hooks", None) or {}
    # Asked of the parameter, not remembered: deepcopy and load_state_dict(assign=True) put another in its place.
    if any(isinstance(hook, _UnitNorm) for hook in hooks.values()):
        return
    if fold:
        _fold_norms(sae)
    sae.W_dec.register_post_accumulate_grad_hook(_UnitNorm(sae))


class _UnitNorm:
    """Gradient hook of one SAE's W_dec; holds the SAE weakly, since the SAE holds the hook."""

    def __init__(self, sae: TrainingSAE[Any]) -> None:
        self._sae = weakref.ref(sae)

    @torch.no_grad()
    def __call__(self, W_dec: Tensor) -> None:
        sae = self._sae()
        if sae is None or not sae.training or W_dec.grad is None:
            return
        block = _CPU_BLOCK if W_dec.device.type == "cpu" else len(W_dec)
        for rows, grad in zip(W_dec.split(block), W_dec.grad.split(block), strict=True):
            rows.div_(_row_norms(rows))
            # Not addcmul, which rounds once less: Adam makes visible differences of the last bits in a gradient.
            grad.sub_((grad * rows).sum(-1, keepdim=True) * rows)


@torch.no_grad()
def _fold_norms(sae: TrainingSAE[Any]) -> None:
    norms = _row_norms(sae.W_dec)
    norms = torch.where((norms - 1).abs() <= _ROUNDING, 1.0, norms)
    sae.W_dec.div_(norms)
    sae.W_enc.mul_(norms.T)


def _row_norms(W_dec: Tensor) -> Tensor:
    """Row norms, shape [d_sae, 1]; 1 for a zero row, which dividing then leaves as it is."""
    norms = torch.linalg.vector_norm(W_dec, dim=-1, keepdim=True)
    return torch.where(norms > 0, norms, 1.0)
