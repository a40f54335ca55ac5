"""SAEs on the bundled model for the tests of the page."""

from __future__ import annotations

import torch
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

CONTEXT = 16


def small_topk(hook_name: str = "blocks.2.hook_resid_pre", *, d_in: int = 192, d_sae: int = 48, **metadata) -> SAE:
    """A TopK SAE with random weights, five features a token, and some latents that never fire."""
    torch.manual_seed(1)
    about = SAEMetadata(hook_name=hook_name, context_size=CONTEXT, prepend_bos=True, **metadata)
    options = {"reshape_activations": "hook_z"} if hook_name.endswith("_z") else {}
    if "hook_head_index" in metadata:
        options = {}
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=5, metadata=about, **options))
    sae.b_enc.data.normal_(std=0.1)
    sae.b_enc.data[-3:] = -1e6
    sae.W_dec.data *= torch.rand(d_sae, 1) + 0.5
    return sae
