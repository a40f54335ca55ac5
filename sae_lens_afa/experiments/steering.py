"""A sparsity coefficient that is steered while an SAE is trained, until its L0 is the one that was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

TARGET_L0 = "target_l0"
# Fields of a configuration by which a loss on the codes is weighted, and the names that SAELens' trainer has for them.
_COEFFICIENTS = {"l0_coefficient": "l0", "l1_coefficient": "l1"}
# L0 is looked at every so many steps, since that waits for the device.
_EVERY = 10
# Of log coefficient, at an L0 that is twice the target or more: what each look adds for good, slower than an SAE
# follows, and what is added for the moment. Without the second one L0 swings, and each low swing leaves dead latents.
_GAIN, _AT_ONCE = 0.02, 1.0


def check_steerable(architecture: str, fields: Sequence[str], settings: Mapping[str, Any], target: float) -> None:
    """Refuse a target L0 that cannot be steered to.

    Args:
        architecture: Name, for the message.
        fields: Of its configuration.
        settings: Values that are given for fields.
        target: The L0.

    Raises:
        ValueError: no or several coefficients to steer, one that starts at 0, or a target that is not above 0.
    """
    found = [name for name in _COEFFICIENTS if name in fields]
    if len(found) != 1:
        raise ValueError(
            f"architecture {architecture!r} has {'no coefficient' if not found else ' and '.join(found)} to steer to a"
            f" {TARGET_L0}; that needs exactly one of {', '.join(_COEFFICIENTS)} (as jumprelu and standard have)."
        )
    if not settings.get(found[0], 1) > 0:
        raise ValueError(f"{found[0]} must be above 0 to be steered, got {settings[found[0]]}.")
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"{TARGET_L0} must be a finite number > 0, got {target}.")


class L0Steering:
    """Control of the logarithm of a coefficient: raised while the code is too dense, lowered while it is too sparse.

    Start from a coefficient that is too small: latents that a too large one has made silent stay dead.

    Args:
        trainer: SAELens' trainer of an SAE with one coefficient above 0; its scheduler's final value is what changes.
        target: The mean L0 to reach.
    """

    def __init__(self, trainer: SAETrainer[Any, Any], target: float) -> None:
        names = [name for name in trainer.coefficient_schedulers if name in _COEFFICIENTS.values()]
        (self._scheduler,) = [trainer.coefficient_schedulers[name] for name in names]
        self._target = target
        self._level = math.log(self._scheduler.final_value)

    @torch.no_grad()
    def look(self, step: int, feature_acts: Tensor) -> None:
        """Change the coefficient by what a step's code [batch, d_sae] shows."""
        if step % _EVERY:
            return
        values = feature_acts.coalesce().values() if feature_acts.is_sparse else feature_acts
        l0 = float(torch.count_nonzero(values)) / len(feature_acts)
        # Not its logarithm: batches scatter, and the mean L0 is what is asked for.
        off = min(l0 / self._target - 1, 1.0)
        self._level += _GAIN * off
        self._scheduler.final_value = math.exp(self._level + _AT_ONCE * off)
