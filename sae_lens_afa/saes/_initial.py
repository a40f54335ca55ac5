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
    """b_dec as the mean of a normalised batch; tokens that are not finite have no part in it."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[rows.isfinite().all(-1)]
    if len(rows) > 0:
        sae.b_dec.copy_(rows.mean(0, dtype=torch.promote_types(x.dtype, torch.float32)))
