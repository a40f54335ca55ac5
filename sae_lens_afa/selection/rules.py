"""The two selection rules as differentiable operators on tensors.

Each is a custom operator, so that torch.compile keeps its graph whole around a selection that depends on the data. The
gradient of both is that of a constant mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_lens_afa import _transforms
from sae_lens_afa._memory import empty, in_shape
from sae_lens_afa.selection._backends import backend_for
from sae_lens_afa.selection._bisection import select_by_bisection
from sae_lens_afa.selection._sorting import select_by_sorting, select_literally

# Elements that the threshold's portable path compares at a time: what stays in cache; few calls on an accelerator.
_CPU_CHUNK, _CHUNK = 1 << 18, 1 << 24


def norm_matching_topk(
    acts: Tensor, target_norm: Tensor, decoder_norm: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Zero all but the largest activations, so many that their norm is nearest to `target_norm`.

    Source: arXiv 2503.24277, section 5 (top-AFA). With e_i = (a_i ||d_i||)^2 in float32, sorted descending,
    E_k = e_(1) + ... + e_(k) in float64 and the target norm t:

        k* = argmin over 1 <= k <= n_positive of | sqrt(E_k) - t |,   the smallest k on a tie

    Equal values at the boundary are taken lowest index first.

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
        >>> import torch
        >>> from sae_lens_afa.selection import norm_matching_topk
        >>> acts = torch.tensor([[3.0, -1.0, 4.0, 0.5]])
        >>> norm_matching_topk(acts, torch.tensor([4.9]))
        tensor([[3., 0., 4., 0.]])
    """
    _check("target_norm", acts, target_norm, decoder_norm)
    if _transforms.at_work():
        return _transforms.choose(torch.ops.sae_lens_afa.norm_matching_topk, acts, target_norm, decoder_norm, backend)
    return torch.ops.sae_lens_afa.norm_matching_topk(acts, target_norm, decoder_norm, backend)


def above_threshold(acts: Tensor, threshold: Tensor, decoder_norm: Tensor | None = None) -> Tensor:
    """Zero all activations but those with `acts * decoder_norm > threshold`.

    No sort, and no second [tokens, d_sae] beside the result. Both sides of the comparison are rounded to float32
    (float64 for float64 activations), on every path.

    Args:
        acts: Pre-activations, shape [..., d_sae], any floating dtype.
        threshold: Threshold of each token, shape [...], in the units of `acts * decoder_norm`, not negative.
        decoder_norm: Norms ||d_i|| of the decoder rows, shape [d_sae]; None stands for all ones.

    Returns:
        `acts` with all other entries zeroed; its shape and dtype. A row with a non-finite activation or threshold
        is returned as it is, so that NaN and inf stay visible. The gradient is that of a constant mask.

    Raises:
        TypeError: `acts`, `threshold` or the norm is not a floating-point tensor.
        ValueError: a shape does not fit, or the back end named in SAE_LENS_AFA_BACKEND is not available.

    Example:
        >>> import torch
        >>> from sae_lens_afa.selection import above_threshold
        >>> above_threshold(torch.tensor([[3.0, -1.0, 4.0, 0.5]]), torch.tensor([1.0]))
        tensor([[3., 0., 4., 0.]])
    """
    _check("threshold", acts, threshold, decoder_norm)
    if _transforms.at_work():
        return _transforms.choose(torch.ops.sae_lens_afa.above_threshold, acts, threshold, decoder_norm)
    return torch.ops.sae_lens_afa.above_threshold(acts, threshold, decoder_norm)


def check_floating_point(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise TypeError, by its name, for a tensor that is not of floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got dtype {tensor.dtype}: convert it first.")


def _check(name_of_rows: str, acts: Tensor, of_rows: Tensor, decoder_norm: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the tensors fit; `of_rows` has an entry for each row of `acts`."""
    check_floating_point({"acts": acts, name_of_rows: of_rows, "decoder_norm": decoder_norm})
    if acts.ndim == 0 or acts.shape[-1] == 0:
        raise ValueError(f"acts must have shape [..., d_sae] with d_sae >= 1, got {list(acts.shape)}.")
    if of_rows.shape != acts.shape[:-1]:
        raise ValueError(
            f"{name_of_rows} must have shape {list(acts.shape[:-1])}, one entry for each row of acts"
            f" {list(acts.shape)}, got {list(of_rows.shape)}."
        )
    if decoder_norm is not None and decoder_norm.shape != acts.shape[-1:]:
        raise ValueError(
            f"decoder_norm must have shape [{acts.shape[-1]}], one norm for each entry of acts' last axis"
            f" (d_sae), got {list(decoder_norm.shape)}."
        )


@torch.library.custom_op(
    "sae_lens_afa::norm_matching_topk",
    mutates_args=(),
    schema="(Tensor acts, Tensor target_norm, Tensor? decoder_norm, str backend) -> Tensor",
)
def _norm_matching(acts: Tensor, target_norm: Tensor, decoder_norm: Tensor | None, backend: str) -> Tensor:
    backend = backend_for(acts.device, backend)
    if acts.numel() == 0:
        return acts.clone()
    rows = acts.detach().reshape(-1, acts.shape[-1])
    target = target_norm.detach().reshape(-1)
    if backend == "triton":
        from sae_lens_afa.kernels.select_triton import select_on_gpu

        return in_shape(select_on_gpu(rows, target, decoder_norm), acts.shape)
    # Devices without float64 (mps) send the rows to the CPU and back.
    if backend == "torch" and acts.device.type not in ("cpu", "mps"):
        out = select_by_bisection(rows, target.to(acts.device, torch.float64), decoder_norm)
        return in_shape(out, acts.shape)
    rows, target = rows.cpu(), target.cpu().double().contiguous()
    norm = None if decoder_norm is None else decoder_norm.detach().cpu().float().contiguous()
    if backend == "numba":
        from sae_lens_afa.kernels.select import select_compiled

        out, undecided = select_compiled(rows, target, norm)
    else:
        out, undecided = select_by_sorting(rows, target, norm)
    # Few: rows that are not finite or leave float32's range, and near-ties, in which the order of a sum would decide.
    for r in undecided:
        out[r] = select_literally(rows[r], float(target[r]), norm)
    return in_shape(out.to(acts.device), acts.shape)


@torch.library.custom_op(
    "sae_lens_afa::above_threshold",
    mutates_args=(),
    schema="(Tensor acts, Tensor threshold, Tensor? decoder_norm) -> Tensor",
)
def _above(acts: Tensor, threshold: Tensor, decoder_norm: Tensor | None) -> Tensor:
    rows = acts.detach().reshape(-1, acts.shape[-1])
    compared = torch.promote_types(acts.dtype, torch.float32)
    thresholds = threshold.detach().reshape(-1).to(compared)
    norm = (acts.new_ones(acts.shape[-1]) if decoder_norm is None else decoder_norm.detach()).to(compared)
    out = empty(rows.shape, rows)
    if rows.device.type == "cpu" and rows.dtype == compared and backend_for(rows.device) == "numba":
        from sae_lens_afa.kernels.threshold import keep_above

        keep_above(rows.contiguous(), thresholds.contiguous(), norm.contiguous(), out)
        return in_shape(out, acts.shape)
    step = max(1, (_CPU_CHUNK if rows.device.type == "cpu" else _CHUNK) // rows.shape[1])
    for start in range(0, len(rows), step):
        chunk = slice(start, start + step)
        _compare(rows[chunk], thresholds[chunk], norm, out[chunk])
    return in_shape(out, acts.shape)


def _compare(acts: Tensor, threshold: Tensor, norm: Tensor, out: Tensor) -> None:
    low, high = torch.aminmax(acts, dim=-1)  # NaN, if there is one
    whole = ~(low.isfinite() & high.isfinite() & threshold.isfinite())
    keep = (acts * norm > threshold[..., None]) | whole[..., None]
    torch.where(keep, acts, acts.new_zeros(()), out=out)


def _like_acts(acts: Tensor, *_: Any) -> Tensor:
    return acts.new_empty(acts.shape)


def _keep_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # The output is kept for the decoder's gradient anyway: the mask costs no memory.
    ctx.n_inputs = len(inputs)
    ctx.save_for_backward(output)


def _masked_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (output,) = ctx.saved_tensors
    return grad * (output > 0), *[None] * (ctx.n_inputs - 1)


for _operator in (_norm_matching, _above):
    _operator.register_fake(_like_acts)
    _operator.register_autograd(_masked_gradient, setup_context=_keep_output)
    _transforms.map_rows(_operator, 0, 1)
