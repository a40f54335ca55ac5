"""Codes with few active features: decoding and gradients that touch only these, on CPU.

A dense decoder multiplies [tokens, d_sae] by [d_sae, d_in] although most of the first is zero. Here the active
entries of a batch are listed, a different number for each token, and the list is what is decoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_afa._memory import empty


class ActiveFeatures(NamedTuple):
    """Non-zero entries of codes [tokens, d_sae] by token: those of token t are offsets[t] to offsets[t + 1]."""

    offsets: Int[Tensor, " tokens+1"]
    features: Int[Tensor, " active"]
    values: Float[Tensor, " active"]


class StepGradients(NamedTuple):
    """Gradients by way of the decoder; `sums` are those of the pre-activations, summed over tokens."""

    W_dec: Float[Tensor, "d_sae d_in"]
    W_enc: Float[Tensor, "d_in d_sae"]
    sums: Float[Tensor, " d_sae"]


def active_features(codes: Float[Tensor, "tokens d_sae"], max_density: float = 1.0) -> ActiveFeatures | None:
    """List the active entries of a batch of codes on the CPU; None if more than that share of all is active."""
    from sae_lens_afa.kernels import active as kernels  # imports numba
    from sae_lens_afa.kernels.compiled import in_threads

    rows = codes.detach().contiguous().numpy()
    counts = torch.empty(len(codes), dtype=torch.int64)

    def count(i: int, j: int) -> None:
        kernels.count_active(rows[i:j], counts.numpy()[i:j])

    in_threads(len(codes), codes.shape[1], count)
    offsets = torch.zeros(len(codes) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=offsets[1:])
    n_active = int(offsets[-1])
    if n_active > max_density * codes.numel():
        return None
    features = torch.empty(n_active, dtype=torch.int64)
    values = torch.empty(n_active, dtype=codes.dtype)

    def fill(i: int, j: int) -> None:
        kernels.list_by_token(rows[i:j], offsets.numpy()[i:j], features.numpy(), values.numpy())

    in_threads(len(codes), codes.shape[1], fill)
    return ActiveFeatures(offsets, features, values)


def decode(active: ActiveFeatures, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "tokens d_in"]:
    """Multiply the codes by W_dec, without gradient. Of CSR matmuls, numba and torch's bags the last are fastest."""
    return torch.nn.functional.embedding_bag(
        active.features,
        W_dec.detach(),
        active.offsets,
        mode="sum",
        per_sample_weights=active.values,
        include_last_offset=True,
    )


def decoder_gradients(
    active: ActiveFeatures, W_dec: Float[Tensor, "d_sae d_in"], grad_recons: Float[Tensor, "tokens d_in"]
) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " tokens"]]:
    """Compute the gradient of W_dec for decoded codes, and each token's squared gradient of its active features."""
    from sae_lens_afa.kernels import active as kernels  # imports numba
    from sae_lens_afa.kernels.compiled import in_threads

    grad = grad_recons.detach().contiguous()
    d_sae, d_in = W_dec.shape
    offsets, tokens, values = _by_feature(active, d_sae)
    result, along = empty((d_sae, d_in), grad), grad.new_empty(len(grad))
    of_rows: Any = [t.numpy() for t in (tokens, values, grad, result)]
    of_tokens: Any = [t.detach().contiguous().numpy() for t in (active.features, W_dec, grad, along)]

    def by_feature(i: int, j: int) -> None:
        kernels.decoder_gradient(offsets.numpy()[i : j + 1], i, *of_rows)

    def by_token(i: int, j: int) -> None:
        kernels.squares_along(active.offsets.numpy()[i : j + 1], i, *of_tokens)

    in_threads(d_sae, d_in + len(tokens) * d_in // d_sae, by_feature)
    in_threads(len(grad), len(tokens) * d_in // max(1, len(grad)), by_token)
    return result, along


def _by_feature(active: ActiveFeatures, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries ordered by feature: where each feature's begin [d_sae + 1], their tokens, their values."""
    from sae_lens_afa.kernels import active as kernels  # imports numba

    offsets = torch.zeros(d_sae + 1, dtype=torch.int64)
    tokens, values = torch.empty(len(active.features), dtype=torch.int32), torch.empty_like(active.values)
    kernels.list_by_feature(*(t.numpy() for t in (*active, offsets, tokens, values)))
    return offsets, tokens, values


def step_gradients(
    active: ActiveFeatures,
    x: Float[Tensor, "tokens d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    grad_recons: Float[Tensor, "tokens d_in"],
    grad_acts: Float[Tensor, "tokens d_sae"] | None,
) -> StepGradients:
    """Compute the gradients of W_enc and W_dec for codes that were selected from x @ W_enc and decoded by W_dec.

    Args:
        active: The codes.
        x: What was encoded.
        W_dec: The decoder.
        grad_recons: Gradient of the decoded codes.
        grad_acts: Gradient of the codes beside that by way of the decoder.
    """
    from sae_lens_afa.kernels import active as kernels  # imports numba
    from sae_lens_afa.kernels.compiled import in_threads

    d_sae, d_in = W_dec.shape
    feature_offsets, tokens, values = _by_feature(active, d_sae)
    result = StepGradients(empty((d_sae, d_in), x), empty((d_in, d_sae), x), x.new_empty(d_sae))
    beside = x.new_empty(0, 0) if grad_acts is None else grad_acts
    shared: Any = [t.detach().contiguous().numpy() for t in (tokens, values, grad_recons, beside, x, W_dec, *result)]

    def work(i: int, j: int) -> None:
        kernels.gradients(feature_offsets.numpy()[i : j + 1], i, *shared)

    in_threads(d_sae, d_in + len(tokens) * d_in // d_sae, work)
    return result
