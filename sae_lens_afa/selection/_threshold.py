"""Keep what exceeds a threshold of its row: no sort, and no second [tokens, d_sae] beside the result.

The comparison is a_i ||d_i|| > t, both sides rounded to float32 (float64 for float64 activations), on every path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_lens_afa._memory import empty, in_shape
from sae_lens_afa.selection._backends import backend_for
from sae_lens_afa.selection._checks import check_selection

# Elements that the portable path compares at a time: what stays in cache, and few calls on an accelerator.
_CPU_CHUNK, _CHUNK = 1 << 18, 1 << 24


def above_threshold(acts: Tensor, threshold: Tensor, decoder_norm: Tensor | None = None) -> Tensor:
    """Zero all activations but those with `acts * decoder_norm > threshold`; for the gradient, a constant mask.

    Args:
        acts: Pre-activations, shape [..., d_sae], any floating dtype.
        threshold: Threshold of each token, shape [...], in the units of `acts * decoder_norm`, not negative.
        decoder_norm: Norms ||d_i|| of the decoder rows, shape [d_sae]; None stands for all ones.

    Returns:
        `acts` with all other entries zeroed; its shape and dtype. A row with a non-finite activation or threshold
        is returned as it is, so that NaN and inf stay visible.

    Raises:
        TypeError: `acts`, `threshold` or the norm is not a floating-point tensor.
        ValueError: a shape does not fit, or the back end named in SAE_LENS_AFA_BACKEND is not available.

    Example:
        >>> above_threshold(torch.tensor([[3.0, -1.0, 4.0, 0.5]]), torch.tensor([1.0]))
        tensor([[3., 0., 4., 0.]])
    """
    check_selection(acts, threshold, decoder_norm, what="threshold")
    return torch.ops.sae_lens_afa.above_threshold(acts, threshold, decoder_norm)


# A custom operator, so that torch.compile keeps its graph whole around the compiled comparison.
@torch.library.custom_op(
    "sae_lens_afa::above_threshold",
    mutates_args=(),
    schema="(Tensor acts, Tensor threshold, Tensor? decoder_norm) -> Tensor",
)
def _select(acts: Tensor, threshold: Tensor, decoder_norm: Tensor | None) -> Tensor:
    rows = acts.detach().reshape(-1, acts.shape[-1])
    thresholds, norm = (t.reshape(-1) for t in _comparable(acts, threshold, decoder_norm))
    out = empty(rows.shape, rows)
    if rows.device.type == "cpu" and rows.dtype == norm.dtype and backend_for(rows.device) == "numba":
        _select_compiled(rows.contiguous(), thresholds.contiguous(), norm.contiguous(), out)
    else:
        step = max(1, (_CPU_CHUNK if rows.device.type == "cpu" else _CHUNK) // rows.shape[1])
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            _compare(rows[chunk], thresholds[chunk], norm, out[chunk])
    return in_shape(out, acts.shape)


@_select.register_fake
def _like_acts(acts: Tensor, *_: Any) -> Tensor:  # pyright: ignore[reportUnusedFunction]  (torch keeps it)
    return acts.new_empty(acts.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  (torch's signature)
    # The output is kept for the decoder's gradient anyway: the mask costs no memory.
    ctx.save_for_backward(output)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (output,) = ctx.saved_tensors
    return grad * (output > 0), None, None


_select.register_autograd(_gradient, setup_context=_keep)


def _comparable(acts: Tensor, threshold: Tensor, decoder_norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """Threshold and norms in the type in which they are compared."""
    norm = acts.new_ones(acts.shape[-1]) if decoder_norm is None else decoder_norm
    dtype = torch.promote_types(acts.dtype, torch.float32)
    return threshold.detach().to(dtype), norm.detach().to(dtype)


def _compare(acts: Tensor, threshold: Tensor, norm: Tensor, out: Tensor) -> None:
    low, high = torch.aminmax(acts, dim=-1)  # NaN, if there is one
    whole = ~(low.isfinite() & high.isfinite() & threshold.isfinite())
    keep = (acts * norm > threshold[..., None]) | whole[..., None]
    torch.where(keep, acts, acts.new_zeros(()), out=out)


def _select_compiled(acts: Tensor, threshold: Tensor, norm: Tensor, out: Tensor) -> None:
    from sae_lens_afa.kernels.compiled import in_threads  # imports numba
    from sae_lens_afa.kernels.threshold import above

    def work(i: int, j: int) -> None:
        above(acts[i:j].numpy(), threshold[i:j].numpy(), norm.numpy(), out[i:j].numpy())

    in_threads(len(acts), acts.shape[1], work)
