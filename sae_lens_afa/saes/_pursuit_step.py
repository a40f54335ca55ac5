"""A pursuit and its decoder as one autograd step, whose gradient touches only active features.

The code is the least-squares fit on its features, so for the squared error of a token, however weighed, the gradient
of the code is zero (the envelope theorem): W_dec's gradient is f^T g, with g that of the decoded code, and no other
has any. For any other loss, or one of the code itself, the fit is differentiated on the tokens where it matters.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_lens_afa import sparse
from sae_lens_afa.crossover import listed_where_faster
from sae_lens_afa.saes._step import StepCode, in_full_precision
from sae_lens_afa.selection import PursuitRule, fit_gradients, pursue

# Norm of a token's gradient by way of the code, relative to that of its decoded code, up to which it is rounding: fits
# are precise to 1e-5 of the token's norm, and what they leave over is mostly more than a hundredth of it.
_ROUNDING = 1e-3


def correlations(x_centered: Float[Tensor, "*tokens d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> Tensor:
    """Return x_centered @ W_dec.T in full precision, also under autocast: a rounded one would add other features."""
    with torch.no_grad(), in_full_precision(x_centered.device):
        return x_centered @ W_dec.T


def pursuit_step(x_centered: Tensor, W_dec: Tensor, rule: PursuitRule, typical_norm: Tensor) -> StepCode:
    """Pursue and decode [..., d_in] as one autograd step. Differentiable once; no hook sees inside."""
    hidden_pre = correlations(x_centered, W_dec)
    feature_acts, decoded = _PursuitStep.apply(x_centered, W_dec, hidden_pre, rule, typical_norm)  # pyright: ignore[reportGeneralTypeIssues]
    return StepCode(feature_acts, hidden_pre, decoded)


class _PursuitStep(torch.autograd.Function):
    """From x_centered [*tokens, d_in] to the code and what it decodes to."""

    @staticmethod
    def forward(
        ctx: Any, x_centered: Tensor, W_dec: Tensor, hidden_pre: Tensor, rule: PursuitRule, typical_norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        codes = pursue(x_centered, W_dec, hidden_pre, rule, typical_norm)
        active = listed_where_faster(codes.reshape(-1, codes.shape[-1]), "step")
        decoded = codes @ W_dec if active is None else sparse.decode(active, W_dec).reshape(x_centered.shape)
        ctx.save_for_backward(x_centered, W_dec, codes, *(active or ()))
        return codes, decoded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_centered, W_dec, codes, *listed = ctx.saved_tensors
        x, codes = x_centered.reshape(-1, x_centered.shape[-1]), codes.reshape(-1, codes.shape[-1])
        of_codes, of_decoded = (None if g is None else g.reshape(-1, g.shape[-1]) for g in grads)
        by_code = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        grad_x, grad_W = None, None
        if of_codes is not None:
            by_code |= (of_codes != 0).any(-1)
        if of_decoded is not None:
            grad_W, along = _of_decoder(codes, listed, W_dec, of_decoded)
            by_code |= along > _ROUNDING**2 * of_decoded.square().sum(-1)
        tokens = by_code.nonzero().squeeze(-1)
        if len(tokens) > 0:
            grad = codes.new_zeros(()) if of_codes is None else of_codes[tokens]
            if of_decoded is not None:
                grad = grad + of_decoded[tokens] @ W_dec.T.to(of_decoded.dtype)
            of_x, of_W = fit_gradients(x[tokens], W_dec, codes[tokens], grad)
            grad_W = of_W if grad_W is None else grad_W + of_W
            grad_x = torch.zeros_like(x).index_copy_(0, tokens, of_x).view_as(x_centered)
        return grad_x, None if grad_W is None else grad_W.to(W_dec.dtype), None, None, None


def _of_decoder(codes: Tensor, listed: list[Tensor], W_dec: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of W_dec for constant codes, and each token's squared gradient of its active features."""
    if listed:
        return sparse.decoder_gradients(sparse.ActiveFeatures(*listed), W_dec, grad)
    of_codes = (grad @ W_dec.T.to(grad.dtype)) * (codes != 0)
    return codes.to(grad.dtype).T @ grad, of_codes.square().sum(-1)
