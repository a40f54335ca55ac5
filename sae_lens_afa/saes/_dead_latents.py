"""The reference implementation's auxiliary loss: dead latents reconstruct what the others leave over."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def dead_latent_loss(
    dead: Bool[Tensor, " d_sae"],
    feature_acts: Float[Tensor, "*tokens d_sae"],
    hidden_pre: Float[Tensor, "*tokens d_sae"],
    residual: Float[Tensor, "*tokens d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """Mean squared error of the residual's reconstruction by the k_aux largest dead latents of each token.

    0 without dead latents. A latent that fires in this batch is not dead, whatever `dead` says.
    """
    index = dead.nonzero().squeeze(-1)
    if len(index) == 0:
        return residual.new_zeros(())
    # The trainer's mask is from before this batch: what fires now is not dead. Masked, and not left out of the
    # index: how many they are would be one more thing to wait for on an accelerator.
    still_dead = (feature_acts.detach()[..., index] <= 0).flatten(0, -2).all(0)
    acts = hidden_pre[..., index].relu() * still_dead
    if len(index) > k_aux:
        largest = acts.topk(k_aux, dim=-1, sorted=False)
        acts = torch.zeros_like(acts).scatter(-1, largest.indices, largest.values)
    return (acts @ W_dec[index] - residual).square().mean() * still_dead.any()
