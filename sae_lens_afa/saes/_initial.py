"""Weights before training: unit decoder rows, and what the first batch of a run can give."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE
from torch import Tensor, nn


def as_reference(sae: SAE[Any]) -> None:
    """The AFA authors': W_enc uniform within +-sqrt(6 / d_sae), W_dec its row-normalised transpose, b_dec zero."""
    bound = (6 / sae.cfg.d_sae) ** 0.5
    nn.init.uniform_(sae.W_enc.data, -bound, bound)
    sae.W_dec.data = nn.functional.normalize(sae.W_enc.data.T, dim=-1).contiguous()


def unit_rows(sae: SAE[Any]) -> None:
    """Decoder rows at norm 1, and W_enc their transpose."""
    sae.W_dec.data = nn.functional.normalize(sae.W_dec.data, dim=-1)
    sae.W_enc.data = sae.W_dec.data.T.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def bias_from_mean(sae: SAE[Any], x: Float[Tensor, "*tokens d_in"]) -> None:
    """b_dec as the mean of a normalised batch."""
    sae.b_dec.copy_(x.flatten(0, -2).mean(0, dtype=torch.promote_types(x.dtype, torch.float32)))


@torch.no_grad()
def rows_from_data(sae: SAE[Any], x: Float[Tensor, "*tokens d_in"]) -> None:
    """Decoder rows as directions of centred tokens drawn at random, and W_enc their transpose.

    Tokens are drawn with replacement if there are fewer than rows. A row whose token has no direction, being at
    b_dec or not finite, stays as it is.
    """
    tokens, d_sae = x.flatten(0, -2), len(sae.W_dec)
    if len(tokens) >= d_sae:
        drawn = torch.randperm(len(tokens), device=x.device)[:d_sae]
    else:
        drawn = torch.randint(len(tokens), (d_sae,), device=x.device)
    samples = (tokens[drawn] - sae.b_dec).to(sae.W_dec.dtype)
    norms = torch.linalg.vector_norm(samples, dim=-1, keepdim=True)
    sae.W_dec.copy_(torch.where((norms > 0) & norms.isfinite(), samples / norms, sae.W_dec))
    sae.W_enc.copy_(sae.W_dec.T)


@torch.no_grad()
def mean_square_overlap(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
    """Mean of <d_i, d_j>^2 over all i != j, of rows brought to norm 1; 1 / d_in for a single row.

    The sum over all i, j is ||W_dec^T W_dec||_F^2: one product of [d_in, d_in], not of [d_sae, d_sae].
    """
    n, d_in = W_dec.shape
    if n == 1:
        return W_dec.new_full((), 1 / d_in, dtype=torch.float32)
    with torch.autocast(W_dec.device.type, enabled=False):
        rows = nn.functional.normalize(W_dec.float(), dim=-1)
        total, own = (rows.T @ rows).square().sum(), rows.square().sum(-1).square().sum()
    return ((total - own) / (n * (n - 1))).clamp_(min=0)
