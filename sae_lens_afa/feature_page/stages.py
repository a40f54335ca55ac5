"""The stage of a pursuit in which each feature of a token joined."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from sae_lens_afa.saes import AFAPursuitSAE, AFAPursuitTrainingSAE
from sae_lens_afa.selection import pursue


def is_pursuit(sae: SAE[Any]) -> bool:
    """Return whether an SAE codes by stages."""
    return isinstance(sae, AFAPursuitSAE | AFAPursuitTrainingSAE)


@torch.no_grad()
def joining_stages(sae: Any, dense: Float[Tensor, "tokens d_in"]) -> Int[Tensor, "tokens d_sae"]:
    """Return in which stage each active feature joined to stay, from 1; 0 where a feature is inactive.

    Pursues with one stage, two stages and so on, until another one changes nothing.

    Args:
        sae: An `AFAPursuitSAE`, or its training form.
        dense: Activations as it codes them, after its input normalisation.
    """
    x_centered = dense - sae.b_dec
    correlations = x_centered @ sae.W_dec.T
    rule = sae.pursuit_rule()
    joined = torch.zeros(correlations.shape, dtype=torch.int16, device=correlations.device)
    before = torch.zeros_like(correlations)
    for stage in range(1, rule.max_stages + 1):
        code = pursue(x_centered, sae.W_dec, correlations, rule._replace(max_stages=stage), sae.typical_norm)
        joined = torch.where(code == 0, 0, torch.where(before == 0, stage, joined))
        if torch.equal(code, before):
            break
        before = code
    return joined
