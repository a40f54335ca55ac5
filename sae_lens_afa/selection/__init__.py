"""Which features are active: those whose norm matches the input's, or those above a threshold of their token.

`above_threshold` compares. The top-AFA rule is `norm_matching_topk`, one function over interchangeable back ends that
all give the same result: "numba" (compiled, for CPU), "triton" (compiled, for cuda) and "torch" (any device, nothing
to install). The environment variable SAE_LENS_AFA_BACKEND names the one that "auto" means.
Source: arXiv 2503.24277, section 5 (top-AFA): keep the k* largest scaled activations, where k* brings the norm
of what is kept nearest to the norm of the dense activation.

With e_i = (a_i ||d_i||)^2 in float32, sorted descending, E_k = e_(1) + ... + e_(k) in float64 and the target norm t:

    k* = argmin over 1 <= k <= n_positive of | sqrt(E_k) - t |,   the smallest k on a tie

and equal values at the boundary are taken lowest index first. The mask is a constant for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sae_lens_afa._memory import in_shape
from sae_lens_afa.selection._backends import available_backends, backend_for, selector
from sae_lens_afa.selection._checks import check_selection
from sae_lens_afa.selection._threshold import above_threshold

__all__ = ["above_threshold", "available_backends", "norm_matching_topk"]


def norm_matching_topk(
    acts: Tensor, target_norm: Tensor, decoder_norm: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Zero all but the largest activations, so many that their norm is nearest to `target_norm`.

    Args:
        acts: Pre-activations, shape [..., d_sae], any floating dtype. Negative entries count as 0, so the
            values before or after a ReLU give the same result.
        target_norm: Norm to match, shape [...] (that of `acts` without its last axis), in the units of
            `acts * decoder_norm`.
        decoder_norm: Norms ||d_i|| of the decoder rows, shape [d_sae]; None stands for all ones.
        backend: One of `available_backends()`, or "auto": the fastest that runs on the device of `acts`.

    Returns:
        `acts` with all entries zeroed but those selected; its shape and dtype. Selection is done in float32
        with float64 sums, whatever the dtype. In every row with a positive entry at least one is kept; a row
        without any is zero. A row with a non-finite activation or target is returned as it is, so that
        NaN and inf stay visible. The gradient is that of a constant mask.

    Raises:
        TypeError: `acts` or a norm is not a floating-point tensor.
        ValueError: a shape does not fit, or the back end named here or in SAE_LENS_AFA_BACKEND is not available.

    Example:
        >>> acts = torch.tensor([[3.0, -1.0, 4.0, 0.5]])
        >>> norm_matching_topk(acts, torch.tensor([4.9]))
        tensor([[3., 0., 4., 0.]])
    """
    check_selection(acts, target_norm, decoder_norm, what="target_norm")
    return torch.ops.sae_lens_afa.norm_matching_topk(acts, target_norm, decoder_norm, backend)


# A custom operator, so that torch.compile keeps its graph whole around the data-dependent selection.
@torch.library.custom_op(
    "sae_lens_afa::norm_matching_topk",
    mutates_args=(),
    schema="(Tensor acts, Tensor target_norm, Tensor? decoder_norm, str backend) -> Tensor",
)
def _select(acts: Tensor, target_norm: Tensor, decoder_norm: Tensor | None, backend: str) -> Tensor:
    select = selector(backend_for(acts.device, backend))
    rows = acts.reshape(-1, acts.shape[-1])
    if rows.numel() == 0:
        return acts.clone()
    return in_shape(select(rows, target_norm.reshape(-1), decoder_norm), acts.shape)


@_select.register_fake
def _like_acts(acts: Tensor, *_: Any) -> Tensor:  # pyright: ignore[reportUnusedFunction]  (torch keeps it)
    return acts.new_empty(acts.shape)


def _keep_output(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  (torch's signature)
    # The output is kept for the decoder's gradient anyway: the mask costs no memory.
    ctx.save_for_backward(output)


def _masked_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (output,) = ctx.saved_tensors
    return grad * (output > 0), None, None, None


_select.register_autograd(_masked_gradient, setup_context=_keep_output)
