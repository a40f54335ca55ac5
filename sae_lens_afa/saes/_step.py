"""The parts of a training step on tensors, and all of them as one autograd step that computes no gradient needlessly.

Two things make the fused step cheaper than its parts. b_dec is subtracted from the input, and autograd would find its
gradient through the gradient of that input, a matmul as large as the encoder's; but d b_dec = -(sum over tokens of the
pre-activations' gradient) W_enc^T needs none. And where few features are active, decoding and the gradients of both
weights touch only these (`sae_lens_afa.sparse`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from jaxtyping import Float
from sae_lens.saes.topk_sae import SparseHookPoint
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformer_lens.hook_points import HookPoint

from sae_lens_afa import _transforms, sparse
from sae_lens_afa._memory import empty, in_shape
from sae_lens_afa.crossover import listed_where_faster

_Method = TypeVar("_Method", bound=Callable[..., Any])


def uncompiled(method: _Method) -> _Method:
    """Keep a method out of torch.compile's graphs: one that counts batches would be compiled anew for each count."""
    return cast(_Method, torch.compiler.disable(method))


class StepCode(NamedTuple):
    """Codes of a batch as a training step needs them; `decoded` is feature_acts @ W_dec, without the bias."""

    feature_acts: Float[Tensor, "*tokens d_sae"]
    hidden_pre: Float[Tensor, "*tokens d_sae"]
    decoded: Float[Tensor, "*tokens d_in"]


class SelectionRule(Protocol):
    """The rule by which a token's features are active, as the architecture and the moment of training have it."""

    def select(
        self,
        hidden_pre: Float[Tensor, "*tokens d_sae"],
        dense_norm: Float[Tensor, "*tokens"],
        decoder_norm: Float[Tensor, " d_sae"],
    ) -> Float[Tensor, "*tokens d_sae"]:
        """Return `hidden_pre` where selected, else 0, by the norm ||x - b_dec|| of the token.

        The gradient is that of a constant mask: 1 for what is selected, 0 for the rest.
        """
        ...


def pre_activations(
    x: Float[Tensor, "*tokens d_in"], b_dec: Float[Tensor, " d_in"], W_enc: Float[Tensor, "d_in d_sae"]
) -> Float[Tensor, "*tokens d_sae"]:
    """Encode: (x - b_dec) W_enc, in autocast's type under autocast. Differentiable any number of times."""
    W_enc = _in_autocast_dtype(W_enc)
    if _transforms.at_work():
        return (x - b_dec).to(W_enc.dtype) @ W_enc
    return _Encode.apply(x, b_dec, W_enc)  # pyright: ignore[reportReturnType]


def dense_norm(x_centered: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens"]:
    """Return ||x - b_dec|| in float64, or the best that the device has; a constant for the gradient."""
    accurate = torch.float32 if x_centered.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(x_centered.detach(), dim=-1, dtype=accurate)


def decoder_norm(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """Return the norms of the decoder's rows; constants for the gradient."""
    return torch.linalg.vector_norm(W_dec.detach(), dim=-1, dtype=_accurate(W_dec))


def for_hooks(selected: Float[Tensor, "*tokens d_sae"], point: nn.Module) -> Float[Tensor, "*tokens d_sae"]:
    """Return feature activations as a hook point is to get them: a copy where a hook might edit them.

    The selection's gradient is masked by its own output, so that an edited output could not be differentiated.
    """
    return selected.clone() if selected.requires_grad and is_observed(point) else selected


def times_decoder(feature_acts: Float[Tensor, "*tokens d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> Tensor:
    """Multiply: feature_acts @ W_dec; where no gradient is asked for, only the active features are looked at."""
    if not (torch.is_grad_enabled() and (feature_acts.requires_grad or W_dec.requires_grad)):
        rows = feature_acts.reshape(-1, feature_acts.shape[-1])
        active = listed_where_faster(rows, "decode") if feature_acts.dtype == W_dec.dtype else None
        if active is not None:
            return sparse.decode(active, W_dec).view(*feature_acts.shape[:-1], W_dec.shape[1])
    return feature_acts @ W_dec


def is_observed(point: nn.Module) -> bool:
    """Tell whether anybody may look at, or change, what passes this hook point or its gradient."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(point) not in (HookPoint, SparseHookPoint) or any(getattr(point, kind) for kind in kinds)


def fused_step(x: Tensor, b_dec: Tensor, W_enc: Tensor, W_dec: Tensor, rule: SelectionRule) -> StepCode:
    """Encode, select and decode [..., d_in] as one autograd step. Differentiable once; no hook sees inside."""
    weights = _in_autocast_dtype(W_enc), _in_autocast_dtype(W_dec)
    outputs: Any = _FusedStep.apply(x, b_dec, *weights, decoder_norm(W_dec), rule)
    return StepCode(*outputs)


def in_full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without autocast; shapes alone (meta) know none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _in_autocast_dtype(weight: Tensor) -> Tensor:
    device = weight.device.type
    if weight.dtype == torch.float64 or weight.is_meta or not torch.is_autocast_enabled(device):
        return weight
    return weight.to(torch.get_autocast_dtype(device))


class _Encode(torch.autograd.Function):
    """The encoder, with the gradient of b_dec from sums over tokens."""

    @staticmethod
    def forward(x: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
        return _matmul((x - b_dec).to(W_enc.dtype), W_enc)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004  (torch's signature)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, b_dec, W_enc = ctx.saved_tensors
        (grad,) = grads
        grad_x = (grad @ W_enc.T).to(x.dtype) if ctx.needs_input_grad[0] else None
        rows = grad.reshape(-1, grad.shape[-1])
        x_centered = (x - b_dec).to(W_enc.dtype).reshape(-1, x.shape[-1])
        grad_b_dec = _bias_gradient(rows.sum(0, dtype=_accurate(rows)), W_enc).to(b_dec.dtype)
        return grad_x, grad_b_dec, _matmul(x_centered.T, rows)


class _FusedStep(torch.autograd.Function):
    """The whole step: from x [*tokens, d_in] to the three tensors of a `StepCode`.

    The mask is a constant, so with g the gradient of the decoded codes the gradient of the pre-activations is
    (g W_dec^T + what comes to the codes directly) where selected, plus what comes to the pre-activations directly. All
    weights' gradients follow from it: by matmuls, or from the list of active features alone where that is faster.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor, W_dec: Tensor, norms: Tensor, rule: SelectionRule
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        leading = x.shape[:-1]
        x_centered = (x - b_dec).reshape(-1, x.shape[-1])
        norm = dense_norm(x_centered)
        x_centered = x_centered.to(W_enc.dtype)
        hidden_pre = _matmul(x_centered, W_enc)
        feature_acts = rule.select(hidden_pre, norm, norms)
        # The gradient of x needs that of every pre-activation.
        active = None if ctx.needs_input_grad[0] else listed_where_faster(feature_acts, "step")
        decoded = _matmul(feature_acts, W_dec) if active is None else sparse.decode(active, W_dec)
        outputs = [in_shape(t, (*leading, t.shape[-1])) for t in (feature_acts, hidden_pre, decoded)]
        # What is returned is what is saved, so that an edit in between is an error of torch's and no wrong gradient.
        ctx.save_for_backward(x_centered, W_enc, W_dec, outputs[0], *(active or ()))
        ctx.dtypes, ctx.leading = (x.dtype, b_dec.dtype), leading
        return outputs[0], outputs[1], outputs[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_centered, W_enc, W_dec, feature_acts, *listed = ctx.saved_tensors
        feature_acts = feature_acts.reshape(-1, W_enc.shape[1])
        grad_acts, grad_pre, grad_decoded = (None if g is None else g.reshape(-1, g.shape[-1]) for g in grads)
        if grad_decoded is None:
            grad_decoded = torch.zeros_like(x_centered)
        x_dtype, b_dtype = ctx.dtypes
        if listed:
            active = sparse.ActiveFeatures(*listed)
            grad_W_dec, grad_W_enc, sums = sparse.step_gradients(active, x_centered, W_dec, grad_decoded, grad_acts)
            if grad_pre is not None:  # of the dead latents, which the auxiliary loss trains
                columns = (grad_pre != 0).any(0).nonzero().squeeze(-1)
                grad_W_enc[:, columns] += x_centered.T @ grad_pre[:, columns]
                sums += grad_pre.sum(0)
            return None, _bias_gradient(sums, W_enc).to(b_dtype), grad_W_enc, grad_W_dec, None, None
        grad = _matmul(grad_decoded, W_dec.T)
        if grad_acts is not None:
            grad += grad_acts
        grad *= feature_acts > 0
        if grad_pre is not None:
            grad += grad_pre
        grad_x = (grad @ W_enc.T).to(x_dtype).reshape(*ctx.leading, len(W_enc)) if ctx.needs_input_grad[0] else None
        grad_b_dec = _bias_gradient(grad.sum(0, dtype=_accurate(grad)), W_enc).to(b_dtype)
        return grad_x, grad_b_dec, _matmul(x_centered.T, grad), _matmul(feature_acts.T, grad_decoded), None, None


def _bias_gradient(sums: Tensor, W_enc: Tensor) -> Tensor:
    """Return -(sum over tokens of the pre-activations' gradient) W_enc^T."""
    return -(W_enc.to(sums.dtype) @ sums)


def _accurate(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a @ b into fresh memory, where no gradient of it is recorded."""
    if a.ndim == 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return a @ b
    shape = torch.Size((*a.shape[:-1], b.shape[1]))
    out = empty((shape[:-1].numel(), b.shape[1]), a)
    return in_shape(torch.mm(a.reshape(-1, a.shape[-1]), b, out=out), shape)
