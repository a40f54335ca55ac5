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
from torch import Tensor, nn

# Rows as near to 1 as float32 normalisation leaves them are taken to be unit.
_ROUNDING = 1e-6
# Rows at a time on a CPU, so that the products stay in cache and take no fresh memory.
_CPU_BLOCK = 256


def arm_unit_norm(sae: TrainingSAE[Any], *, fold: bool) -> None:
    """Keep the rows of `sae.W_dec` at norm 1 from now on, whenever `sae` is in training mode.

    After each backward pass the part of W_dec's gradient that is parallel to its rows is removed and the rows
    are normalised, before the optimizer steps; rows that are zero stay zero. Arming twice does nothing, nor does
    arming a W_dec that is not trained.

    Args:
        sae: A training SAE with parameters W_enc [d_in, d_sae] and W_dec [d_sae, d_in].
        fold: Move the norms that the rows have now into W_enc, which changes no output. False for weights that
            continue a run: what they deviate from 1 is that run's last optimizer step.
    """
    hook = _hook_on(sae)
    if hook is None or hook.armed:
        return
    if fold:
        _fold_norms(sae)
    hook.armed, hook.seen = True, None


def arm_once_trained(sae: TrainingSAE[Any]) -> None:
    """Arm, with fold, an SAE whose W_dec was changed after a backward pass: it is in a training loop.

    To be called at each training pass of an SAE that nobody said is to be trained. The first only starts to watch:
    one pass and its gradients stay as they are.
    """
    hook = _hook_on(sae)
    if hook is not None and hook.sees_a_step(sae.W_dec):
        arm_unit_norm(sae, fold=True)


def forget_seen(sae: TrainingSAE[Any]) -> None:
    """Take other weights in W_dec for no step of an optimizer."""
    if (hook := _hook_of(sae)) is not None:
        hook.seen = None


def _hook_on(sae: TrainingSAE[Any]) -> _UnitNorm | None:
    """Return the hook of this SAE on its present W_dec, put there if need be; None where W_dec is not trained."""
    W_dec = sae.W_dec
    # A functional call puts in a tensor that may not be a leaf.
    if not isinstance(W_dec, nn.Parameter) or not W_dec.requires_grad:  # pyright: ignore[reportUnnecessaryIsInstance]
        return None
    hook = _hook_of(sae)
    if hook is None:
        hook = _UnitNorm(sae)
        W_dec.register_post_accumulate_grad_hook(hook)
    return hook


def _hook_of(sae: TrainingSAE[Any]) -> _UnitNorm | None:
    """Find the hook on the parameter itself: deepcopy and load_state_dict(assign=True) put another in its place."""
    hooks: Mapping[int, Any] = getattr(sae.W_dec, "_post_accumulate_grad_hooks", None) or {}
    own = (hook for hook in hooks.values() if isinstance(hook, _UnitNorm) and hook.is_of(sae))
    return next(own, None)


class _UnitNorm:
    """Gradient hook of one SAE's W_dec; holds the SAE weakly, since the SAE holds the hook.

    Attributes:
        armed: Whether it constrains. Else it only notes that there was a gradient.
        seen: A column of W_dec as it was when its last gradient came, while not armed; None without any. By values,
            because fused optimizers do not raise torch's count of changes.
    """

    def __init__(self, sae: TrainingSAE[Any]) -> None:
        self._sae = weakref.ref(sae)
        self.armed = False
        self.seen: Tensor | None = None

    def is_of(self, sae: TrainingSAE[Any]) -> bool:
        """Tell whether it constrains this SAE."""
        return self._sae() is sae

    @torch.no_grad()
    def sees_a_step(self, W_dec: Tensor) -> bool:
        """Tell whether W_dec has changed since its last gradient; waits for the device, but only until it is armed."""
        if self.armed or self.seen is None:
            return False
        return not torch.equal(W_dec[:, 0], self.seen.to(W_dec))

    @torch.no_grad()
    def __call__(self, W_dec: Tensor) -> None:
        sae = self._sae()
        if sae is None or not sae.training or W_dec.grad is None:
            return
        if not self.armed:
            self.seen = W_dec[:, 0].clone()
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
    if "W_enc" in dict(sae.named_parameters()):  # and not the transpose of W_dec, from which values follow
        sae.W_enc.mul_(norms.T)


def _row_norms(W_dec: Tensor) -> Tensor:
    """Return row norms, shape [d_sae, 1]; 1 for a zero row, which dividing then leaves as it is."""
    norms = torch.linalg.vector_norm(W_dec, dim=-1, keepdim=True)
    return torch.where(norms > 0, norms, 1.0)
