"""Dead latents put where the reconstruction fails.

An auxiliary loss draws dead latents, step by step, towards the mean of what is lacking. Where codes are sparse, what a
token lacks is mostly one feature that no latent stands for: a dead latent that takes its direction is of use at once.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor


@torch.no_grad()
def reseed(
    sae: TrainingSAE[Any],
    dead: Bool[Tensor, " d_sae"],
    feature_acts: Float[Tensor, "*tokens d_sae"],
    residual: Float[Tensor, "*tokens d_in"],
    threshold: Float[Tensor, "*tokens"],
) -> None:
    """Give dead latents the directions of residuals, in place: W_dec's rows keep their norms, W_enc is in step.

    Tokens are drawn in proportion to their squared residual, without replacement, from those whose residual would pass
    the threshold itself; what is below it is no feature by the rule. A direction that would fire on the token of one
    drawn before it is left out: latents that all take up the same lack would together add it many times over. So some
    of the dead latents stay as they are.

    Args:
        sae: An SAE with parameters W_enc [d_in, d_sae] and W_dec [d_sae, d_in].
        dead: Latents that have not fired for long. One that is active in this batch is left alone.
        feature_acts: Codes of a batch.
        residual: What they leave over.
        threshold: Least activation times decoder norm with which a feature is kept on each token.
    """
    residual = residual.flatten(0, -2)
    lacking = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.promote_types(residual.dtype, torch.float32))
    chosen = lacking.isfinite() & (lacking > threshold.flatten())
    latents = (dead & ~(feature_acts > 0).flatten(0, -2).any(0)).nonzero().squeeze(-1)
    count = min(len(latents), int(chosen.sum()))
    if count == 0:
        return
    latents = latents[torch.randperm(len(latents), device=latents.device)[:count]]
    tokens = torch.multinomial(torch.where(chosen, lacking.square(), 0), count)
    directions = (residual[tokens] / lacking[tokens, None]).to(sae.W_dec.dtype)
    # Row i: what each direction would get of token i's residual; columns: only those drawn after i.
    shared = (residual[tokens].to(directions.dtype) @ directions.T > threshold.flatten()[tokens, None]).triu(1).any(0)
    latents, directions = latents[~shared], directions[~shared]
    norms = torch.linalg.vector_norm(sae.W_dec[latents], dim=-1, keepdim=True)
    norms = torch.where(norms > 0, norms, 1)
    sae.W_dec[latents] = directions * norms
    if "W_enc" in dict(sae.named_parameters()):  # and not the transpose of W_dec
        sae.W_enc[:, latents] = (directions / norms).T
