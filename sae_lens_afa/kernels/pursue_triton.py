# type: ignore  (Triton's language is Python in syntax only)
"""Pursuit by stages on a GPU: what `sae_lens_afa.kernels.pursue` does on a CPU, one token per program.

Beside the matmul that gives a stage's correlations there are two kernels. `look` lists the features of a token that are
active or stand out. `take_in` makes the Gram matrix of those listed, holds it in registers, and does on it all that
the stage does: who joins, the fits by conjugate gradients, who leaves. The host waits for the device once per stage, to
learn which tokens go on, and how long their lists are: programs are compiled for several lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

# Lengths of lists, with warps for each; the Gram matrix of a longer one leaves no room in registers.
_PLACES = {16: 1, 32: 2, 64: 4, 128: 8}
_LONGEST = max(_PLACES)
# The squared norm of what is left over is a difference of products in float32: wrong by about a millionth of the
# token's, which is little beside the square of this floor.
_LEAST_FLOOR = 0.03
# Tokens whose later correlations are held at a time.
_BLOCK = 1024
_PRECISION = 1e-5  # of a fit's gradient, relative to the token's norm, as on a CPU


def can_pursue(rule: Any, dtype: torch.dtype) -> bool:
    """Tell whether the kernels are precise enough for this rule and dtype; else the portable back end is."""
    return dtype == torch.float32 and rule.floor >= _LEAST_FLOOR


def pursue_on_gpu(
    x: Float[Tensor, "tokens d_in"],
    W: Float[Tensor, "d_sae d_in"],
    correlations: Float[Tensor, "tokens d_sae"],
    inverse_norm: Float[Tensor, " d_sae"],
    rule: Any,
    typical_norm: Float[Tensor, ""],
    otherwise: Callable[..., Tensor],
) -> Float[Tensor, "tokens d_sae"]:
    """Return the codes of a `PursuitRule`; the first stage by the correlations given. All float32, on one GPU.

    Tokens with longer lists than there are kernels for are left to `otherwise`, which takes the same arguments.
    """
    x, W, correlations = x.contiguous(), W.contiguous(), correlations.contiguous()
    norm = torch.linalg.vector_norm(x, dim=-1)
    least = rule.floor * torch.maximum(norm, typical_norm)
    codes = torch.where(norm.isfinite()[:, None], 0, correlations)
    residual, tokens = x.clone(), torch.arange(len(x), device=x.device)
    lengths = torch.tensor([0, *_PLACES], dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        for n_stages in range(rule.max_stages):
            rest = torch.linalg.vector_norm(residual[tokens], dim=-1)
            thresholds = rule.threshold * torch.maximum(rest, least[tokens])
            near = torch.empty(len(tokens), _LONGEST, dtype=torch.int32, device=x.device)
            counts = torch.empty(len(tokens), dtype=torch.int32, device=x.device)
            block = max(1, len(tokens)) if n_stages == 0 else _BLOCK
            for start in range(0, len(tokens), block):
                part = slice(start, start + block)
                found = correlations if n_stages == 0 else residual[tokens[part]] @ W.T
                look[(len(found),)](
                    found, tokens[part], codes, inverse_norm, thresholds[part], near[part], counts[part], len(W),
                    PLACES=_LONGEST, BLOCK=min(1024, triton.next_power_of_2(len(W))), num_warps=4,
                )  # fmt: skip
            in_order, order = counts.sort()
            done, *ends = torch.searchsorted(in_order, lengths, right=True).tolist()
            for start, end, (places, warps) in zip([done, *ends], ends, _PLACES.items(), strict=False):
                if end > start:
                    take_in[(end - start,)](
                        order[start:end], tokens, near, counts, x, W, inverse_norm, least, codes, residual,
                        rule.threshold, rule.weak, _PRECISION, x.shape[1], len(W),
                        STRIDE=_LONGEST, PLACES=places, BLOCK=32, num_warps=warps,
                    )  # fmt: skip
            longer, tokens = tokens[order[ends[-1] :]], tokens[order[done : ends[-1]]]
            if len(longer) > 0:
                of_longer = x[longer], W, correlations[longer], inverse_norm, rule, typical_norm
                codes[longer] = otherwise(*of_longer)
            if len(tokens) == 0:
                break
    return codes


@triton.jit
def look(  # pragma: no cover
    correlations,
    tokens,
    codes,
    inverse_norm,
    thresholds,
    near,
    counts,
    d_sae,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List, by rising feature, what is active and what stands out; count them, or 0 where nothing stands out."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + row)
    threshold = tl.load(thresholds + row)
    n_listed = 0
    n_joining = 0
    for start in range(0, d_sae, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < d_sae
        length = tl.load(correlations + row * d_sae + columns, mask=inside, other=0.0)
        length = length * tl.load(inverse_norm + columns, mask=inside, other=0.0)
        active = tl.load(codes + token * d_sae + columns, mask=inside, other=0.0) != 0
        joining = (length > threshold) & ~active
        listed = active | joining
        place = n_listed + tl.cumsum(listed.to(tl.int32), axis=0) - 1
        tl.store(near + row * PLACES + place, columns, mask=listed & (place < PLACES))
        n_listed += tl.sum(listed.to(tl.int32), axis=0)
        n_joining += tl.sum(joining.to(tl.int32), axis=0)
    tl.store(counts + row, tl.where(n_joining > 0, n_listed, 0))


@triton.jit
def _along(gram, vector):  # pragma: no cover
    return tl.sum(gram * vector[None, :], axis=1)


@triton.jit
def _left_over(gram, products, values, square, scale, least):  # pragma: no cover
    """Return the products of all listed with what the values leave over, its squared norm, and the threshold."""
    of_fit = _along(gram, values)
    rest = square + tl.sum(values * (of_fit - 2.0 * products), axis=0)
    return products - of_fit, rest, scale * tl.maximum(tl.sqrt(tl.maximum(rest, 0.0)), least)


@triton.jit
def _least_squares(gram, products, free, values, precise, limit):  # pragma: no cover
    """Fit the free ones, from their values on, until the gradient's squared norm is at most `precise`.

    Or until a way ahead would be one of rounding, where rows are nearly dependent: 8e-6 is 64 rounding steps.
    """
    fit = tl.where(free, values, 0.0)
    gradient = tl.where(free, products - _along(gram, fit), 0.0)
    ahead = gradient
    slope = tl.sum(gradient * gradient, axis=0)
    n_steps = 0
    while (slope > precise) & (n_steps < limit):
        move = tl.where(free, _along(gram, ahead), 0.0)
        curvature = tl.sum(move * ahead, axis=0)
        sound = curvature > 8e-6 * tl.sum(ahead * ahead, axis=0)
        length = tl.where(sound, slope / tl.where(sound, curvature, 1.0), 0.0)
        fit += length * ahead
        gradient -= length * move
        after = tl.where(sound, tl.sum(gradient * gradient, axis=0), 0.0)
        ahead = gradient + after / slope * ahead
        slope = after
        n_steps += 1
    return fit


@triton.jit
def _fit_without_negatives(gram, products, free, values, precise, limit):  # pragma: no cover
    """Fit the free ones; what would become negative stops the way there where it is 0, and leaves."""
    n_blocked = 1
    while n_blocked > 0:
        fit = _least_squares(gram, products, free, values, precise, limit)
        blocked = free & (fit <= 0.0)
        n_blocked = tl.sum(blocked.to(tl.int32), axis=0)
        steps = tl.where(blocked, values / tl.maximum(values - fit, 1e-37), 1.0)
        step = tl.min(steps, axis=0)
        free = free & ~(blocked & (steps <= step))
        values = tl.where(free, values + step * (fit - values), 0.0)
    return values


@triton.jit
def take_in(  # pragma: no cover
    order,
    tokens,
    near,
    counts,
    x,
    W,
    inverse_norm,
    leasts,
    codes,
    residual,
    scale,
    weak,
    tolerance,
    d_in,
    d_sae,
    STRIDE: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Let those that stand out join, the strongest first, until none does; write the token's code and residual."""
    row = tl.load(order + tl.program_id(0))
    token = tl.load(tokens + row)
    place = tl.arange(0, PLACES)
    listed = place < tl.load(counts + row)
    feature = tl.load(near + row * STRIDE + place, mask=listed, other=0).to(tl.int64)
    inverse = tl.load(inverse_norm + feature, mask=listed, other=0.0)
    code = tl.load(codes + token * d_sae + feature, mask=listed, other=0.0)
    may_join = listed & (code == 0.0)
    values = tl.where(may_join, 0.0, code / tl.where(inverse > 0.0, inverse, 1.0))
    gram = tl.zeros([PLACES, PLACES], tl.float32)
    products = tl.zeros([PLACES], tl.float32)
    square = 0.0
    for start in range(0, d_in, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < d_in
        rows = tl.load(
            W + feature[:, None] * d_in + columns[None, :], mask=listed[:, None] & inside[None, :], other=0.0
        )
        rows = rows * inverse[:, None]
        part = tl.load(x + token * d_in + columns, mask=inside, other=0.0)
        gram += tl.dot(rows, tl.trans(rows), input_precision="ieee")
        products += tl.sum(rows * part[None, :], axis=1)
        square += tl.sum(part * part, axis=0)
    least = tl.load(leasts + token)
    precise = tolerance * tolerance * square
    along, left, threshold = _left_over(gram, products, values, square, scale, least)
    waits = may_join & (values == 0.0)
    best = tl.max(tl.where(waits, along, 0.0), axis=0)
    limit = 2 * PLACES + 8  # of fits, as of steps in each: rounding must not keep the device for ever
    n_fits = 0
    while (best > threshold) & (n_fits < limit):
        joins = waits & (along > threshold) & (along >= weak * best)
        fitted = _fit_without_negatives(gram, products, joins | (values != 0.0), values, precise, limit)
        along, after, threshold = _left_over(gram, products, fitted, square, scale, least)
        # Each fit lowers what is left over, but for rounding where rows are nearly equal: then the stage ends.
        lower = after < left
        values = tl.where(lower, fitted, values)
        left = after
        waits = may_join & (values == 0.0)
        best = tl.where(lower, tl.max(tl.where(waits, along, 0.0), axis=0), 0.0)
        n_fits += 1
    values = values * inverse
    tl.store(codes + token * d_sae + feature, values, mask=listed)
    for start in range(0, d_in, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < d_in
        rows = tl.load(
            W + feature[:, None] * d_in + columns[None, :], mask=listed[:, None] & inside[None, :], other=0.0
        )
        part = tl.load(x + token * d_in + columns, mask=inside, other=0.0)
        tl.store(residual + token * d_in + columns, part - tl.sum(rows * values[:, None], axis=0), mask=inside)
