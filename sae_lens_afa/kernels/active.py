"""Machine code for codes with few active features: their list, and the gradients of a training step.

A batch of codes [tokens, d_sae] is listed by token (for decoding) and by feature (for gradients, so that each row
of a weight is read and written once, however many tokens it is active on). All loops over d_in run at vector speed on
rows that lie in cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_lens_afa.kernels.compiled import compiled, compiled_fused

Array = Any  # numpy arrays, whose element types numba tells apart and strict typing need not
# Features whose columns of W_enc's gradient are written together: sixteen float32 fill a cache line.
_TILE = 16


@compiled
def count_active(codes: Array, counts: Array) -> None:  # pragma: no cover
    """Count the non-zero entries of each row, NaN among them."""
    for r in range(len(codes)):
        row, n = codes[r], np.int32(0)
        for i in range(len(row)):
            n += np.int32(row[i] != 0)
        counts[r] = n


@compiled
def list_by_token(codes: Array, offsets: Array, features: Array, values: Array) -> None:  # pragma: no cover
    """Write the non-zero entries of row r to offsets[r] and on, by rising feature."""
    for r in range(len(codes)):
        row, n = codes[r], offsets[r]
        for i in range(len(row)):
            if row[i] != 0:
                features[n] = i
                values[n] = row[i]
                n += 1


@compiled
def list_by_feature(  # pragma: no cover
    offsets: Array, features: Array, values: Array, feature_offsets: Array, tokens: Array, token_values: Array
) -> None:
    """Order the entries by feature, then by token; `feature_offsets` has d_sae + 1 entries, all 0 to begin with."""
    # Counting sort: count each feature's entries, sum the counts to the places where features begin, fill the places.
    for i in range(len(features)):
        feature_offsets[features[i] + 1] += 1
    for j in range(1, len(feature_offsets)):
        feature_offsets[j] += feature_offsets[j - 1]
    place = feature_offsets.copy()
    for r in range(len(offsets) - 1):
        for i in range(offsets[r], offsets[r + 1]):
            j = place[features[i]]
            tokens[j] = r
            token_values[j] = values[i]
            place[features[i]] += 1


@compiled_fused
def dot(a: Array, b: Array) -> Any:  # pragma: no cover
    """Add up the products."""
    result = a.dtype.type(0)
    for i in range(len(a)):
        result += a[i] * b[i]
    return result


@compiled_fused
def add_scaled(to: Array, factor: Any, row: Array) -> None:  # pragma: no cover
    """Add factor * row to `to`, in place."""
    for i in range(len(to)):
        to[i] += factor * row[i]


@compiled_fused
def decoder_gradient(  # pragma: no cover
    feature_offsets: Array, first: int, tokens: Array, values: Array, grad_recons: Array, grad_W_dec: Array
) -> None:
    """Compute the rows of W_dec's gradient from `first` on, as many as there are offsets."""
    for j in range(len(feature_offsets) - 1):
        row = grad_W_dec[first + j]
        row[:] = 0
        for i in range(feature_offsets[j], feature_offsets[j + 1]):
            add_scaled(row, values[i], grad_recons[tokens[i]])


@compiled_fused
def squares_along(  # pragma: no cover
    offsets: Array, first: int, features: Array, W_dec: Array, grad_recons: Array, squares: Array
) -> None:
    """Sum, for the tokens from `first` on, the squared products of a token's gradient with its features' rows."""
    for t in range(len(offsets) - 1):
        total = grad_recons.dtype.type(0)
        for i in range(offsets[t], offsets[t + 1]):
            along = dot(grad_recons[first + t], W_dec[features[i]])
            total += along * along
        squares[first + t] = total


@compiled_fused
def gradients(  # pragma: no cover
    feature_offsets: Array,
    first: int,
    tokens: Array,
    values: Array,
    grad_recons: Array,
    grad_acts: Array,
    x: Array,
    W_dec: Array,
    grad_W_dec: Array,
    grad_W_enc: Array,
    grad_sums: Array,
) -> None:
    """Compute the gradients of the features from `first` on, as many as there are offsets, into the last three.

    These are the gradients of W_dec [d_sae, d_in], W_enc [d_in, d_sae] and of the pre-activations' sums over tokens.
    `grad_acts` [tokens, d_sae] is what comes to the activations beside the decoder's gradient, or is empty.
    """
    # A feature's gradients are sums over the tokens on which it is active, of rows of length d_in: of the residual's
    # gradient for its row of W_dec, of the input for its column of W_enc. A column would be written one entry in d_sae
    # at a time; so columns are first gathered as rows of a tile, and a tile is written out transposed.
    d_in, last = x.shape[1], first + len(feature_offsets) - 1
    tile = np.empty((_TILE, d_in), x.dtype)
    for start in range(first, last, _TILE):
        stop = min(start + _TILE, last)
        tile[:] = 0
        for j in range(start, stop):
            decoder, grad_decoder, encoder = W_dec[j], grad_W_dec[j], tile[j - start]
            grad_decoder[:] = 0
            grad_sum = x.dtype.type(0)
            for i in range(feature_offsets[j - first], feature_offsets[j - first + 1]):
                r, value = tokens[i], values[i]
                add_scaled(grad_decoder, value, grad_recons[r])
                if value > 0:
                    grad = dot(grad_recons[r], decoder)
                    if grad_acts.size > 0:
                        grad += grad_acts[r, j]
                    grad_sum += grad
                    add_scaled(encoder, grad, x[r])
            grad_sums[j] = grad_sum
        for i in range(d_in):
            for j in range(start, stop):
                grad_W_enc[i, j] = tile[j - start, i]
