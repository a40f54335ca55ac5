"""Pursuit by stages, as a differentiable operator on tensors: which features a token is made of, and how much of each.

With z = x - b_dec, unit rows d_i, the code f = 0 and the residual r = z, a stage looks once at all features:

    candidates are the inactive i with  <r, d_i>  >  T(r) = t max(||r||, floor max(||z||, typical norm)),

and then at these alone, until none of them is above T(r) any more:

    1. those join with  <r, d_i>  >  T(r)  and  <r, d_i>  >=  weak max over inactive candidates j of <r, d_j>,
    2. f becomes the least-squares fit of z on what is active. A fit that would be negative is stopped where the first
       value becomes 0; that feature leaves, and the rest is fitted anew (Lawson and Hanson's inner loop),
    3. r becomes what the fit leaves over.

A token is done when a stage has no candidates. Each fit lowers ||r||, so no set of features comes twice, and the
pursuit ends; where rows are so nearly equal that rounding keeps a fit from it, the fit is taken back, and the token is
done. The threshold t = c sqrt(2 ln d_sae / d_in) is `sae_lens_afa.functional.universal_threshold`'s, of the
residual where `afa_threshold` takes the whole token. That the strongest join first is what keeps two latents from
standing for one feature: what the first explains, the second has no part in. See docs/afa_pursuit.md.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa import _transforms
from sae_lens_afa._memory import in_shape
from sae_lens_afa.selection._backends import backend_for
from sae_lens_afa.selection._batched_pursuit import GATHERED, Support, pursue_portable
from sae_lens_afa.selection.pursuit_rule import RESOLUTION, PursuitRule
from sae_lens_afa.selection.rules import check_floating_point


def pursue(
    x_centered: Tensor,
    W_dec: Tensor,
    correlations: Tensor,
    rule: PursuitRule,
    typical_norm: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return the codes of tokens: non-negative, each the least-squares fit of its token on its active features.

    The gradient is the exact one of that fit: of the values, with the choice of features held constant.

    Args:
        x_centered: Tokens x - b_dec, shape [..., d_in].
        W_dec: Dictionary, shape [d_sae, d_in]; rows of any norm, by which values scale.
        correlations: x_centered @ W_dec.T, shape [..., d_sae], by which the first stage chooses; a constant.
        rule: What is added, and for how long.
        typical_norm: Norm ||x - b_dec|| of the data, shape []; 0 where a token's own is all there is to go by.
        backend: One of `available_backends()`, or "auto": the fastest that runs on the device.

    Returns:
        Codes, shape [..., d_sae], in the dtype of `x_centered`; computed in float32, or float64 for float64. A token
        that is not finite has its correlations as its code, so that NaN and inf stay visible.

    Raises:
        TypeError: a tensor is not of floating-point numbers.
        ValueError: a shape does not fit, or the back end named here or in SAE_LENS_AFA_BACKEND is not available.

    Example:
        >>> import torch
        >>> from sae_lens_afa.selection import PursuitRule, pursue
        >>> W_dec, x = torch.eye(3), torch.tensor([[3.0, 0.0, 2.0]])
        >>> pursue(x, W_dec, x @ W_dec.T, PursuitRule(0.8, 0.1, 1.0, 8), torch.tensor(0.0))
        tensor([[3., 0., 2.]])
    """
    _check(x_centered, W_dec, correlations, typical_norm)
    tensors = x_centered, W_dec, correlations, typical_norm
    if not _transforms.at_work():
        return torch.ops.sae_lens_afa.pursue(*tensors, *rule, backend)
    codes = torch.ops.sae_lens_afa.pursue(*(tensor.detach() for tensor in tensors), *rule, backend)
    return _fitted_again(x_centered, W_dec, codes)


def _check(x_centered: Tensor, W_dec: Tensor, correlations: Tensor, typical_norm: Tensor) -> None:
    """Raise TypeError or ValueError unless the tensors fit."""
    check_floating_point(
        {"x_centered": x_centered, "W_dec": W_dec, "correlations": correlations, "typical_norm": typical_norm}
    )
    if x_centered.ndim == 0 or W_dec.ndim != 2 or x_centered.shape[-1] != W_dec.shape[1]:
        raise ValueError(
            f"x_centered [..., d_in] and W_dec [d_sae, d_in] must have the same last axis, got"
            f" {list(x_centered.shape)} and {list(W_dec.shape)}."
        )
    expected = [*x_centered.shape[:-1], len(W_dec)]
    if list(correlations.shape) != expected:
        raise ValueError(f"correlations must have shape {expected}, [..., d_sae], got {list(correlations.shape)}.")
    if typical_norm.ndim != 0:
        raise ValueError(f"typical_norm must be one number, of shape [], got {list(typical_norm.shape)}.")


@torch.library.custom_op(
    "sae_lens_afa::pursue",
    mutates_args=(),
    schema=(
        "(Tensor x_centered, Tensor W_dec, Tensor correlations, Tensor typical_norm,"
        " float threshold, float floor, float weak, int max_stages, str backend) -> Tensor"
    ),
)
def _pursue(
    x_centered: Tensor,
    W_dec: Tensor,
    correlations: Tensor,
    typical_norm: Tensor,
    threshold: float,
    floor: float,
    weak: float,
    max_stages: int,
    backend: str,
) -> Tensor:
    backend = backend_for(x_centered.device, backend)
    rule, dtype = PursuitRule(threshold, max(floor, RESOLUTION), weak, max_stages), x_centered.dtype
    accurate = torch.promote_types(dtype, torch.float32)
    rows = x_centered.detach().reshape(-1, x_centered.shape[-1]).to(accurate)
    found = correlations.detach().reshape(-1, correlations.shape[-1]).to(accurate)
    W = W_dec.detach().to(accurate)
    norm = torch.linalg.vector_norm(W, dim=-1)
    inverse_norm = torch.where(norm > 0, 1 / norm, 0)
    with torch.autocast(x_centered.device.type, enabled=False):
        if backend == "numba":
            from sae_lens_afa.kernels.pursue import pursue_compiled

            codes = pursue_compiled(rows, W, found, inverse_norm, rule, float(typical_norm))
        else:
            pursue_there = _pursue_on_gpu if backend == "triton" else pursue_portable
            codes = pursue_there(rows, W, found, inverse_norm, rule, typical_norm.to(accurate))
    return in_shape(codes.to(dtype), correlations.shape)


def _pursue_on_gpu(
    rows: Tensor, W: Tensor, found: Tensor, inverse_norm: Tensor, rule: PursuitRule, typical: Tensor
) -> Tensor:
    from sae_lens_afa.kernels.pursue_triton import can_pursue, pursue_on_gpu

    if not can_pursue(rule, rows.dtype):
        return pursue_portable(rows, W, found, inverse_norm, rule, typical)
    return pursue_on_gpu(rows, W, found, inverse_norm, rule, typical, otherwise=pursue_portable)


def _like_correlations(x_centered: Tensor, _: Tensor, correlations: Tensor, *__: Any) -> Tensor:
    return x_centered.new_empty(correlations.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)


def fit_gradients(
    x_centered: Float[Tensor, "tokens d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    codes: Float[Tensor, "tokens d_sae"],
    grad: Float[Tensor, "tokens d_sae"],
) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "d_sae d_in"]]:
    """Differentiate codes, with the choice of features held constant: from their gradient to that of tokens and W_dec.

    The fit of the active rows D is f = (D D^T)^-1 D z. With v = (D D^T)^-1 grad, r = z - D^T f these are dz = D^T v and
    dD = v r^T - f dz^T.

    Args:
        x_centered: Tokens x - b_dec.
        W_dec: Dictionary.
        codes: What `pursue` returned for them.
        grad: Gradient of the codes; where they are zero it has no effect.

    Example:
        >>> import torch
        >>> from sae_lens_afa.selection import fit_gradients
        >>> codes = torch.tensor([[3.0, 0.0]])
        >>> of_x, of_W_dec = fit_gradients(torch.tensor([[3.0, 1.0]]), torch.eye(2), codes, torch.ones(1, 2))
        >>> of_x
        tensor([[1.0000, 0.0000]])
    """
    accurate = torch.promote_types(codes.dtype, torch.float32)
    x, f, g, W = (t.detach().to(accurate) for t in (x_centered, codes, grad, W_dec))
    of_x, of_W = torch.zeros_like(x), torch.zeros_like(W)
    widest = int((f != 0).sum(-1).max()) if len(f) > 0 else 0
    step = max(1, GATHERED // (max(1, widest) * W.shape[1]))
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, len(x) if widest > 0 else 0, step):
            part = slice(start, start + step)
            support = Support.of(f[part] != 0, W)
            values = support.gather(f[part])
            v = support.solve(support.used, support.gather(g[part]))
            of_x[part] = support.decode(v)
            residual = x[part] - support.decode(values)
            of_rows = v[..., None] * residual[:, None] - values[..., None] * of_x[part][:, None]
            of_W.index_add_(0, support.features.flatten(), (of_rows * support.used[..., None]).flatten(0, 1))
    return of_x.to(x_centered.dtype), of_W.to(W_dec.dtype)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x_centered, W_dec, codes = ctx.saved_tensors
    x, f, g = (t.reshape(-1, t.shape[-1]) for t in (x_centered, codes, grad))
    of_x, of_W = fit_gradients(x, W_dec, f, g)
    return of_x.view_as(x_centered), of_W, *[None] * 7


@torch.library.custom_op("sae_lens_afa::active_features", mutates_args=(), schema="(Tensor codes) -> Tensor")
def _active_features(codes: Tensor) -> Tensor:
    """Return the active features of each token [..., most of any], by falling value, and then others to that length."""
    active = (codes != 0) & codes.isfinite()
    most = int(active.sum(-1).max()) if codes.numel() > 0 else 0
    return torch.where(active, codes, 0).topk(max(1, most), dim=-1).indices


def _fitted_again(x_centered: Tensor, W_dec: Tensor, codes: Tensor) -> Tensor:
    """Return the codes as plain operations on x_centered and W_dec: the fit on the features that they have."""
    accurate = torch.promote_types(codes.dtype, torch.float32)
    rows, W = x_centered.reshape(-1, x_centered.shape[-1]).to(accurate), W_dec.to(accurate)
    constant = codes.reshape(-1, codes.shape[-1]).to(accurate)
    features = torch.ops.sae_lens_afa.active_features(constant)
    finite = constant.isfinite().all(-1, keepdim=True)
    used = (constant.gather(1, features) != 0) & finite
    support = Support(features, used, W[features] * used[..., None])
    with torch.autocast(codes.device.type, enabled=False):
        values = support.solve(used, torch.einsum("tad,td->ta", support.rows, torch.where(finite, rows, 0)))
        fit = support.scatter(values, codes.shape[-1])
    return torch.where(finite, fit, constant).to(codes.dtype).reshape(codes.shape)


_transforms.map_rows(_active_features, 0)
_transforms.map_rows(_pursue, 0, 2)
_pursue.register_fake(_like_correlations)
_pursue.register_autograd(_gradients, setup_context=_keep)
