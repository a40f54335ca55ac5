"""Machine code for one stage of a pursuit: choose among a token's correlations, then fit the values of what is chosen.

Beside the matmul that gives the correlations a stage is cheap: one scan of them, and least-squares fits of the few
features that are active, by conjugate gradients on their Gram matrix, which stays in cache.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa._memory import empty
from sae_lens_afa.kernels.active import add_scaled, dot
from sae_lens_afa.kernels.compiled import compiled, compiled_fused, in_threads

Array = Any  # numpy arrays, whose element types numba tells apart and strict typing need not

# Rounding steps of its dtype, up to which the squared norm of a sum of rows, by that of their weights, is rounding.
_DEPENDENT = 64
# Tokens whose later correlations are held at a time: the product is as fast as with more, and the memory is small.
_BLOCK = 128


def pursue_compiled(
    x: Float[Tensor, "tokens d_in"],
    W: Float[Tensor, "d_sae d_in"],
    correlations: Float[Tensor, "tokens d_sae"],
    inverse_norm: Float[Tensor, " d_sae"],
    rule: Any,
    typical_norm: float,
) -> Float[Tensor, "tokens d_sae"]:
    """Return the codes of a `PursuitRule`; the first stage by the correlations given. All of one dtype, on CPU."""
    codes, residual = empty(correlations.shape, x).zero_(), x.clone(memory_format=torch.contiguous_format)
    number, run = x.numpy().dtype.type, cast(Any, stage)
    shared: Any = (
        *(t.contiguous().numpy() for t in (x, W, inverse_norm)),
        *(number(v) for v in (rule.threshold, rule.floor, typical_norm, rule.weak, _precision(x.dtype))),
        *(t.numpy() for t in (codes, residual)),
    )
    tokens, block = np.arange(len(x)), len(x)  # those of the first stage are there
    for n_stages in range(rule.max_stages):
        if len(tokens) == 0:
            break
        unfinished = np.empty(len(tokens), np.bool_)
        for start in range(0, len(tokens), block):
            here, going_on = tokens[start : start + block], unfinished[start : start + block]
            found = (correlations.contiguous() if n_stages == 0 else residual[here] @ W.T).numpy()

            def work(i: int, j: int, found: Array = found, here: Array = here, going_on: Array = going_on) -> None:
                run(found[i:j], here[i:j], *shared, going_on[i:j])

            in_threads(len(here), len(W), work)
        tokens, block = tokens[unfinished], _BLOCK
    return codes


def _precision(dtype: torch.dtype) -> float:
    """Return the gradient's norm at which a fit is taken to be reached, relative to the token's."""
    return 1e-5 if dtype == torch.float32 else 1e-11


@compiled_fused
def stage(  # pragma: no cover
    correlations: Array,
    tokens: Array,
    x: Array,
    W: Array,
    inverse_norm: Array,
    scale: Any,
    floor: Any,
    typical: Any,
    weak: Any,
    tolerance: Any,
    codes: Array,
    residual: Array,
    unfinished: Array,
) -> None:
    """Take the tokens named in `tokens` one stage further: `codes` [., d_sae] and `residual` [., d_in], in place.

    Row i of `correlations` is that of the residual of tokens[i]; unfinished[i] says whether its residual became less.
    The threshold is scale * max(||residual||, floor * max(||x||, typical)), the fit's precision `tolerance` * ||x||.
    """
    d_sae, d_in = W.shape
    # More than d_in features leave nothing over: what finds no place waits for the next stage, if there is one.
    n_places = min(d_sae, 2 * d_in + 8) + 1
    near, place = np.empty(d_sae, np.int64), np.empty(d_sae, np.int64)
    may_join, lengths = np.empty(d_sae, np.bool_), np.empty(d_sae, x.dtype)
    feature, chosen = np.empty(n_places, np.int64), np.empty(n_places, np.int64)
    values, products = np.empty(n_places, x.dtype), np.empty(n_places, x.dtype)
    gram, scratch = np.empty((n_places, n_places), x.dtype), np.empty((5, n_places), x.dtype)
    places = feature, values, products, gram, chosen, scratch
    for row in range(len(tokens)):
        t = tokens[row]
        unfinished[row] = False
        norm = np.sqrt(dot(x[t], x[t]))
        if not np.isfinite(norm):
            codes[t] = correlations[row]
            continue
        least = floor * max(norm, typical)
        threshold = scale * max(np.sqrt(dot(residual[t], residual[t])), least)
        n = look(correlations[row], codes[t], inverse_norm, threshold, near, may_join, lengths)
        if may_join[:n].any():
            listed = near[:n], may_join[:n], lengths[:n], place[:n]
            limits = scale, least, threshold, weak, tolerance * norm
            unfinished[row] = take_in(listed, places, limits, x[t], W, inverse_norm, codes[t], residual[t])


@compiled
def look(  # pragma: no cover
    correlations: Array, code: Array, inverse_norm: Array, threshold: Any, near: Array, may_join: Array, lengths: Array
) -> Any:
    """List, by rising feature, what is active and what stands out and may join; return how many."""
    n = 0
    for i in range(len(code)):
        length = correlations[i] * inverse_norm[i]
        if code[i] != 0 or length > threshold:
            near[n], may_join[n], lengths[n] = i, code[i] == 0, length
            n += 1
    return n


@compiled_fused
def take_in(  # pragma: no cover
    listed: Any, places: Any, limits: Any, token: Array, W: Array, inverse_norm: Array, code: Array, rest: Array
) -> Any:
    """Let those that may join do so, the strongest first: what they leave over says which of the others follow.

    A feature that is active, or has been, has a place: its value, its product with the token, and its row of the Gram
    matrix of those that have one. All of it is for rows of norm 1. `code` and `rest` are changed in place; return
    whether `rest` became less. Each fit makes it so, but for rounding where rows are nearly equal: what does not is
    taken back, and the token is left at that, or the same features would come and go for ever.
    """
    near, may_join, lengths, place = listed
    feature, values, products, gram, chosen, scratch = places
    scale, least, threshold, weak, precise = limits
    left, gained, n = dot(rest, rest), False, 0
    for i in range(len(near)):
        place[i] = -1
        if not may_join[i] and n < len(feature):
            place[i] = n
            take_place(near[i], n, feature, products, gram, token, W, inverse_norm)
            values[n] = code[near[i]] / inverse_norm[near[i]]
            n += 1
    while n < len(feature):
        best = threshold
        for i in range(len(near)):
            if may_join[i] and (place[i] < 0 or values[place[i]] == 0):
                best = max(best, lengths[i])
        if best <= threshold:
            break
        k = 0
        for i in range(len(near)):
            joins = may_join[i] and lengths[i] > threshold and lengths[i] >= weak * best
            if joins and place[i] < 0 and n < len(feature):
                place[i] = n
                take_place(near[i], n, feature, products, gram, token, W, inverse_norm)
                values[n] = 0
                n += 1
            if place[i] >= 0 and (joins or values[place[i]] != 0):
                chosen[k] = place[i]
                k += 1
        scratch[4, :n] = values[:n]
        fit_without_negatives(chosen, k, values, gram, products, scratch, precise)
        leave_over(token, n, feature, values, W, inverse_norm, rest)
        after = dot(rest, rest)
        if not after < left:
            values[:n] = scratch[4, :n]
            leave_over(token, n, feature, values, W, inverse_norm, rest)
            break
        left, gained = after, True
        threshold = scale * max(np.sqrt(after), least)
        for i in range(len(near)):
            if may_join[i]:
                lengths[i] = dot(W[near[i]], rest) * inverse_norm[near[i]]
    for i in range(n):
        code[feature[i]] = values[i] * inverse_norm[feature[i]]
    return gained


@compiled_fused
def leave_over(  # pragma: no cover
    token: Array, n: int, feature: Array, values: Array, W: Array, inverse_norm: Array, rest: Array
) -> None:
    """Put what the first n features leave over of a token into `rest`."""
    rest[:] = token
    for i in range(n):
        if values[i] != 0:
            add_scaled(rest, -values[i] * inverse_norm[feature[i]], W[feature[i]])


@compiled_fused
def take_place(  # pragma: no cover
    j: int, n: int, feature: Array, products: Array, gram: Array, token: Array, W: Array, inverse_norm: Array
) -> None:
    """Put feature j at place n: its product with the token, and with those of the features before it."""
    feature[n] = j
    products[n] = dot(W[j], token) * inverse_norm[j]
    for i in range(n + 1):
        gram[n, i] = dot(W[j], W[feature[i]]) * inverse_norm[j] * inverse_norm[feature[i]]
        gram[i, n] = gram[n, i]


@compiled_fused
def fit_without_negatives(  # pragma: no cover
    chosen: Array, n: int, values: Array, gram: Array, products: Array, scratch: Array, precise: Any
) -> None:
    """Fit the first n of the chosen from their values on, in place; those that leave get 0.

    Lawson and Hanson's inner loop: what a fit on all of the chosen would make negative stops the way towards that fit
    where its value is 0, and leaves.
    """
    fit, tiny = scratch[0], np.finfo(values.dtype).tiny
    while n > 0:
        least_squares(chosen[:n], values, gram, products, scratch, precise * precise)
        step = values.dtype.type(1)
        for i in range(n):
            value = values[chosen[i]]
            if fit[i] <= 0:
                step = min(step, value / max(value - fit[i], tiny))
        kept = 0
        for i in range(n):
            value = values[chosen[i]]
            # The same quotient, so that the feature whose value becomes 0 leaves, however that is rounded.
            if fit[i] > 0 or value / max(value - fit[i], tiny) > step:
                values[chosen[i]] = value + step * (fit[i] - value)
                chosen[kept] = chosen[i]
                kept += 1
            else:
                values[chosen[i]] = 0
        if kept == n:
            break
        n = kept


@compiled_fused
def least_squares(  # pragma: no cover
    chosen: Array, values: Array, gram: Array, products: Array, scratch: Array, precise: Any
) -> None:
    """Put the least-squares fit of the chosen into scratch[0], from their values on, by conjugate gradients.

    Until the squared norm of the gradient is at most `precise`, or rows are so nearly dependent that a way ahead would
    be one of rounding. What they have in common they share by then.
    """
    n, before, zero = len(chosen), precise, precise - precise
    least_curvature = values.dtype.type(_DEPENDENT * np.finfo(values.dtype).eps)
    fit, gradient, ahead, move = scratch[0, :n], scratch[1, :n], scratch[2, :n], scratch[3, :n]
    for i in range(n):
        fit[i] = values[chosen[i]]
    for i in range(n):
        gradient[i] = products[chosen[i]]
        for k in range(n):
            gradient[i] -= gram[chosen[i], chosen[k]] * fit[k]
    for iteration in range(2 * n + 8):
        slope = dot(gradient, gradient)
        if slope <= precise:
            return
        for i in range(n):
            ahead[i] = gradient[i] + (slope / before * ahead[i] if iteration > 0 else zero)
        curvature = zero
        for i in range(n):
            total = zero
            for k in range(n):
                total += gram[chosen[i], chosen[k]] * ahead[k]
            move[i] = total
            curvature += total * ahead[i]
        if not curvature > least_curvature * dot(ahead, ahead):
            return
        length = slope / curvature
        for i in range(n):
            fit[i] += length * ahead[i]
            gradient[i] -= length * move[i]
        before = slope
