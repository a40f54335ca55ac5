# type: ignore  (Triton's language is Python in syntax only)
"""The norm-matching rule on a GPU, one row per program: bisection on the float32 bit pattern of the boundary energy.

Let S(v) be the sum of a row's energies e_i = (a_i ||d_i||)^2 that exceed v. The boundary is the smallest v with
S(v) <= target^2: what is larger is kept, and of the energies equal to it as many as the norm asks for. Non-negative
floats are ordered as their bit patterns are, so that at most 32 halvings of the patterns find it exactly: no sort, and
all programs take about the same time. Sums are float64.

Rows that fit into the registers of one program are read once and written once (`select_row`). What does not fit, and
the rare rows that are not finite or leave float32's range, go through `select_wide_row`, which reads a row again for
every halving. It is launched in any case and returns at once from rows that are done: to ask how many there are would
make the host wait for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_LARGEST_ROW = 16384  # that fits into registers
_WIDE_BLOCK = 4096
# Bit patterns of the energies between which float32 squares need no rescaling (2^-40, 2^120), and of infinity.
_MIN_PEAK = tl.constexpr(87 << 23)
_MAX_PEAK = tl.constexpr(247 << 23)
_INFINITY = tl.constexpr(255 << 23)


def select_on_gpu(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "rows d_sae"]:
    """Apply the rule to each row of a cuda tensor, without waiting for the device."""
    acts = acts.contiguous()
    target = target_norm.to(acts.device, torch.float64).contiguous()
    norm = acts if decoder_norm is None else decoder_norm.detach().to(acts.device, torch.float32).contiguous()
    out = torch.empty_like(acts)
    n_rows, d_sae = acts.shape
    # In float64 there are other bit patterns; all such rows take the long way.
    fits = d_sae <= _LARGEST_ROW and acts.dtype != torch.float64
    done = torch.zeros(n_rows, dtype=torch.bool, device=acts.device)
    # Nothing fused: the energy is the float32 product, rounded, and then its float32 square.
    options = {"HAS_NORM": decoder_norm is not None, "enable_fp_fusion": False}
    block = triton.next_power_of_2(d_sae)
    in_registers = options | {"BLOCK": block, "num_warps": 16 if block > 4096 else 4}
    in_blocks = options | {"BLOCK": min(block, _WIDE_BLOCK), "num_warps": 8}
    with torch.cuda.device_of(acts):
        if fits:
            select_row[(n_rows,)](acts, target, norm, out, done, d_sae, **in_registers)
        select_wide_row[(n_rows,)](acts, target, norm, out, done, d_sae, **in_blocks)
    return out


@triton.jit
def _is_finite(x):  # pragma: no cover
    return tl.abs(x) < float("inf")  # of NaN as well: the maximum of NaN and 0 is 0 on a GPU


@triton.jit
def _n_crossing(below, boundary, n_equal, goal, target):  # pragma: no cover
    """Count which of the entries that equal the boundary are kept, from the sum `below` of all that exceed it."""
    # `whole` of them fit under the target; one more is kept where that brings the norm nearer, or as the first of all.
    value = boundary.to(tl.float64)
    whole = tl.minimum(tl.maximum(tl.floor((goal - below) / value), 0.0), n_equal.to(tl.float64) - 1.0)
    under = below + whole * value
    over = under + value
    one_more = (under == 0.0) | (tl.sqrt(over) - target < target - tl.sqrt(under))
    return whole.to(tl.int32) + one_more.to(tl.int32)


@triton.jit
def select_row(  # pragma: no cover
    acts, targets, norms, out, done, d_sae, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """Decide a row that fits into registers; one that is not finite or leaves float32's range is left undone."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d_sae
    a = tl.load(acts + row * d_sae + columns, mask=inside, other=0.0)
    wanted = tl.load(targets + row)
    target = tl.maximum(wanted, 0.0)
    scaled = tl.maximum(a.to(tl.float32), 0.0)
    if HAS_NORM:
        scaled = scaled * tl.load(norms + columns, mask=inside, other=0.0)
    energy = scaled * scaled
    worst = tl.max(a.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    peak = tl.max(energy.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    nothing = tl.max(a.to(tl.float32), axis=0) <= 0.0
    finite = (worst < _INFINITY) & _is_finite(wanted)
    if finite & (nothing | ((peak >= _MIN_PEAK) & (peak <= _MAX_PEAK))):
        goal = target * target
        total = tl.sum(energy.to(tl.float64), axis=0)
        # S(v) >= total - d_sae v, because what does not exceed v adds up to no more than d_sae v. So the boundary is at
        # least (total - goal) / d_sae, which saves half of the halvings; a millionth less, for rounding. 0 where all
        # of it fits.
        bound = tl.maximum((total - goal) / d_sae * 0.999999, 0.0).to(tl.float32)
        low = bound.to(tl.int32, bitcast=True) - 1
        high = peak
        while high - low > 1:
            middle = low + (high - low) // 2
            value = middle.to(tl.float32, bitcast=True)
            above = tl.sum(tl.where(energy > value, energy, 0.0).to(tl.float64), axis=0)
            fits = above <= goal
            high = tl.where(fits, middle, high)
            low = tl.where(fits, low, middle)
        boundary = high.to(tl.float32, bitcast=True)
        keep = energy > boundary
        if high > 0:
            equal = energy == boundary
            below = tl.sum(tl.where(keep, energy, 0.0).to(tl.float64), axis=0)
            n_equal = tl.sum(equal.to(tl.int32), axis=0)
            take = _n_crossing(below, boundary, n_equal, goal, target)
            if take < n_equal:  # lowest index first
                equal = equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= take)
            keep = keep | equal
        tl.store(out + row * d_sae + columns, tl.where(keep, a, 0.0), mask=inside)
        tl.store(done + row, True)


@triton.jit
def _power_of_two(exponent):  # pragma: no cover
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _scaled(acts, norms, columns, d_sae, HAS_NORM: tl.constexpr):  # pragma: no cover
    """Load a_i ||d_i|| in float64, where a product of two float32 is exact and cannot leave the range."""
    scaled = tl.maximum(tl.load(acts + columns, mask=columns < d_sae, other=0.0).to(tl.float64), 0.0)
    if HAS_NORM:
        scaled = scaled * tl.load(norms + columns, mask=columns < d_sae, other=0.0).to(tl.float64)
    return scaled


@triton.jit
def _energy(acts, norms, columns, d_sae, scale_1, scale_2, HAS_NORM: tl.constexpr):  # pragma: no cover
    scaled = (_scaled(acts, norms, columns, d_sae, HAS_NORM) * scale_1 * scale_2).to(tl.float32)
    return scaled * scaled


@triton.jit
def _sum_above(  # pragma: no cover
    acts, norms, d_sae, value, scale_1, scale_2, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr
):
    above = tl.zeros([BLOCK], tl.float64)
    for start in range(0, d_sae, BLOCK):
        energy = _energy(acts, norms, start + tl.arange(0, BLOCK), d_sae, scale_1, scale_2, HAS_NORM)
        above += tl.where(energy > value, energy, 0.0).to(tl.float64)
    return tl.sum(above, axis=0)


@triton.jit
def select_wide_row(  # pragma: no cover
    acts, targets, norms, out, done, d_sae, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """Decide a row of any length and range in blocks, rescaled by a power of two where squares leave float32's range.

    A row that is not finite is copied as it is.
    """
    row = tl.program_id(0).to(tl.int64)
    if tl.load(done + row):
        return
    acts += row * d_sae
    out += row * d_sae
    wanted = tl.load(targets + row)
    target = tl.maximum(wanted, 0.0)
    peaks = tl.zeros([BLOCK], tl.float64)
    regular = tl.full([BLOCK], True, tl.int1)
    for start in range(0, d_sae, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        a = tl.load(acts + columns, mask=columns < d_sae, other=0.0).to(tl.float64)
        scaled = _scaled(acts, norms, columns, d_sae, HAS_NORM)
        peaks = tl.maximum(peaks, scaled)
        regular = regular & _is_finite(a) & _is_finite(scaled)
    peak = tl.max(peaks, axis=0)
    if (tl.min(regular.to(tl.int32), axis=0) == 0) | ~_is_finite(wanted):
        for start in range(0, d_sae, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            a = tl.load(acts + columns, mask=columns < d_sae, other=0.0)
            tl.store(out + columns, a, mask=columns < d_sae)
        return
    exponent = (peak.to(tl.int64, bitcast=True) >> 52).to(tl.int32) - 1022
    exponent = tl.where((peak >= 2.0**-20) & (peak <= 2.0**60), 0, exponent)
    # In two steps, each a power of two that float64 holds, also for the smallest and the largest peaks.
    half = exponent // 2
    scale_1, scale_2 = _power_of_two(-half), _power_of_two(half - exponent)
    target = target * scale_1 * scale_2
    goal = target * target
    largest = (peak * scale_1 * scale_2).to(tl.float32)
    high = (largest * largest).to(tl.int32, bitcast=True)
    low = high * 0 - 1
    while high - low > 1:
        middle = low + (high - low) // 2
        value = middle.to(tl.float32, bitcast=True)
        fits = _sum_above(acts, norms, d_sae, value, scale_1, scale_2, HAS_NORM, BLOCK) <= goal
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, middle)
    boundary = high.to(tl.float32, bitcast=True)
    take = high * 0
    if high > 0:
        equals = tl.zeros([BLOCK], tl.int32)
        for start in range(0, d_sae, BLOCK):
            energy = _energy(acts, norms, start + tl.arange(0, BLOCK), d_sae, scale_1, scale_2, HAS_NORM)
            equals += (energy == boundary).to(tl.int32)
        below = _sum_above(acts, norms, d_sae, boundary, scale_1, scale_2, HAS_NORM, BLOCK)
        take = _n_crossing(below, boundary, tl.sum(equals, axis=0), goal, target)
    for start in range(0, d_sae, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        energy = _energy(acts, norms, columns, d_sae, scale_1, scale_2, HAS_NORM)
        equal = (energy == boundary).to(tl.int32)
        keep = (energy > boundary) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= take))
        a = tl.load(acts + columns, mask=columns < d_sae, other=0.0)
        tl.store(out + columns, tl.where(keep, a, 0.0), mask=columns < d_sae)
        take -= tl.sum(equal, axis=0)
