"""Small SAEs and activations for the tests of this folder."""

from __future__ import annotations

import torch
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from sae_lens_afa import TopAFASAE, TopAFASAEConfig

D_IN, D_SAE = 16, 48


def build(*, decoder_norm: float = 1.0, **overrides) -> TopAFASAE:
    """A top-AFA SAE with a bias and decoder rows of all norms around `decoder_norm`."""
    torch.manual_seed(0)
    overrides.setdefault(
        "metadata", SAEMetadata(model_name="kjv", hook_name="blocks.1.hook_resid_pre", context_size=32)
    )
    sae = TopAFASAE(
        TopAFASAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": "layer_norm", **overrides})
    )
    norms = decoder_norm * torch.linspace(0.5, 1.5, sae.cfg.d_sae)[:, None]
    sae.W_dec.data = (torch.nn.functional.normalize(sae.W_dec.data.float(), dim=-1) * norms).to(sae.dtype)
    sae.W_enc.data = (sae.W_dec.data.float().T / norms.T**2 * 1.3).to(sae.dtype).contiguous()
    sae.b_dec.data = (0.1 * torch.randn(sae.cfg.d_in)).to(sae.dtype)
    return sae


def tokens(n: int = 2000, d_in: int = D_IN, seed: int = 0) -> Tensor:
    """Activations on few directions, of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(12, d_in, generator=torch.Generator().manual_seed(99))
    amounts = torch.randn(n, 12, generator=generator).relu() ** 2
    return 3 * amounts @ directions + 0.1 * torch.randn(n, d_in, generator=generator)
