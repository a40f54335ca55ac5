"""Machine code for one stage of a pursuit: choose among a token's correlations, then fit the values of what is chosen.

Beside the matmul that gives the correlations a stage is cheap: one scan of them, and a least-squares fit of the few
active features, by conjugate gradients on their rows of the dictionary, which stay in cache.
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

    Row i of `correlations` is that of the residual of tokens[i]; unfinished[i] says whether a feature joined. The
    threshold is scale * max(||residual||, floor * max(||x||, typical)), the fit's precision `tolerance` * ||x||.
    """
    d_sae, d_in = W.shape
    chosen, values, fit = np.empty(d_sae, np.int64), np.empty(d_sae, x.dtype), np.empty(d_sae, x.dtype)
    ahead, gradient = np.empty(d_sae, x.dtype), np.empty(d_sae, x.dtype)
    rest, move = np.empty(d_in, x.dtype), np.empty(d_in, x.dtype)
    tiny = np.finfo(x.dtype).tiny
    for row in range(len(tokens)):
        t = tokens[row]
        unfinished[row] = False
        norm = np.sqrt(dot(x[t], x[t]))
        if not np.isfinite(norm):
            codes[t] = correlations[row]
            continue
        threshold = scale * max(np.sqrt(dot(residual[t], residual[t])), floor * max(norm, typical))
        n, n_fresh = choose(correlations[row], codes[t], inverse_norm, threshold, weak, chosen)
        if n_fresh == 0:
            continue
        unfinished[row] = True
        for i in range(n):
            values[i] = codes[t, chosen[i]] / inverse_norm[chosen[i]]
            codes[t, chosen[i]] = 0
        limit = tolerance * norm
        # Lawson and Hanson's inner loop. What a fit on all of the chosen would make negative stops the way towards that
        # fit where its value is 0, and leaves.
        while n > 0:
            fit[:n] = values[:n]
            rest[:] = residual[t]
            least_squares(chosen[:n], W, inverse_norm, fit, rest, ahead, gradient, move, limit * limit)
            step = x.dtype.type(1)
            for i in range(n):
                if fit[i] <= 0:
                    step = min(step, values[i] / max(values[i] - fit[i], tiny))
            residual[t] += step * (rest - residual[t])
            kept = 0
            for i in range(n):
                # The same quotient, so that the feature whose value becomes 0 leaves, however that is rounded.
                if fit[i] > 0 or values[i] / max(values[i] - fit[i], tiny) > step:
                    values[kept] = values[i] + step * (fit[i] - values[i])
                    chosen[kept] = chosen[i]
                    kept += 1
            n_before, n = n, kept
            if n == n_before:
                break
        for i in range(n):
            codes[t, chosen[i]] = values[i] * inverse_norm[chosen[i]]


@compiled
def choose(  # pragma: no cover
    correlations: Array, code: Array, inverse_norm: Array, threshold: Any, weak: Any, chosen: Array
) -> Any:
    """List, by rising feature, those that are active and those that join; return how many, and how many join."""
    best = threshold - threshold
    for i in range(len(code)):
        length = correlations[i] * inverse_norm[i]
        if code[i] == 0 and length > best:
            best = length
    if best <= threshold:
        return 0, 0
    n = n_fresh = 0
    for i in range(len(code)):
        length = correlations[i] * inverse_norm[i]
        joins = code[i] == 0 and length > threshold and length >= weak * best
        if joins or code[i] != 0:
            chosen[n] = i
            n += 1
            n_fresh += joins
    return n, n_fresh


@compiled_fused
def least_squares(  # pragma: no cover
    chosen: Array,
    W: Array,
    inverse_norm: Array,
    fit: Array,
    rest: Array,
    ahead: Array,
    gradient: Array,
    move: Array,
    precise: Any,
) -> None:
    """Improve `fit`, whose residual is `rest`, to the least-squares fit of the rows `chosen`, by conjugate gradients.

    Until the squared norm of the gradient is at most `precise`; `ahead`, `gradient` and `move` are scratch.
    """
    n, before = len(chosen), precise
    for iteration in range(2 * n + 8):
        slope = precise - precise
        for i in range(n):
            gradient[i] = dot(W[chosen[i]], rest) * inverse_norm[chosen[i]]
            slope += gradient[i] * gradient[i]
        if slope <= precise:
            return
        move[:] = 0
        for i in range(n):
            ahead[i] = gradient[i] + (slope / before * ahead[i] if iteration > 0 else precise - precise)
            add_scaled(move, ahead[i] * inverse_norm[chosen[i]], W[chosen[i]])
        length = slope / dot(move, move)
        for i in range(n):
            fit[i] += length * ahead[i]
        add_scaled(rest, -length, move)
        before = slope
