"""Inputs for the property tests of the selection: shapes, scales and the awkward cases."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("gaussian", "sparse", "tied", "all_positive", "zero", "huge", "tiny", "long_tail", "non_finite")


@st.composite
def selection_inputs(
    draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, longest: int = 5
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Activations of one to four dimensions, target norms from none to more than all, and decoder norms or None."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.lists(st.integers(1, longest), min_size=0, max_size=3))
    d_sae = draw(st.sampled_from([1, 2, 3, 17, 127, 128, 129, 300]))
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    if dtype == torch.float16 and kind in ("huge", "tiny"):
        dtype = torch.float32
    acts = torch.randn(*shape, d_sae, generator=generator)
    if kind == "sparse":
        acts[torch.rand(acts.shape, generator=generator) < 0.9] = 0
    elif kind == "tied":
        acts = (acts * 2).round()
    elif kind == "all_positive":
        acts = acts.abs() + 1e-3
    elif kind == "zero":
        acts = -acts.abs() * (torch.rand(acts.shape, generator=generator) < 0.5)
    elif kind in ("huge", "tiny"):
        acts *= 10.0 ** ((1 if kind == "huge" else -1) * draw(st.integers(15, 35)))
    elif kind == "long_tail":
        acts = acts.abs() * 10.0 ** (-8 * torch.rand(acts.shape, generator=generator))
    acts = acts.to(dtype)
    decoder_norm = None
    if draw(st.booleans()):
        decoder_norm = torch.rand(d_sae, generator=generator) + 0.1
        decoder_norm[torch.rand(d_sae, generator=generator) < 0.1] = 0
    scaled = acts.double().clamp(min=0) * (1 if decoder_norm is None else decoder_norm.double())
    fraction = draw(st.sampled_from([0.0, 0.1, 0.3, 0.7, 0.95, 1.05, 3.0]))
    target = scaled.norm(dim=-1) * (fraction + 0.01 * torch.rand(shape, generator=generator).double())
    if kind == "non_finite":
        bad = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        acts[..., draw(st.integers(0, d_sae - 1))] = bad
        if shape and acts[0].isnan().any():
            target[0] = bad
    return acts, target, decoder_norm
