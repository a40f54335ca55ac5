# type: ignore  (Triton's language is Python in syntax only)
"""Kernels for the selection on a GPU, one row per program: bisection on the float32 bit pattern of the boundary energy.

Non-negative floats are ordered as their bit patterns are, so that at most 32 halvings find the smallest energy above
which what is left fits under the squared target: no sort. Sums are float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Bit patterns of the energies between which float32 squares need no rescaling (2^-40, 2^120), and of infinity.
_MIN_PEAK = tl.constexpr(87 << 23)
_MAX_PEAK = tl.constexpr(247 << 23)
_INFINITY = tl.constexpr(255 << 23)


@triton.jit
def _is_finite(x):  # pragma: no cover
    return tl.abs(x) < float("inf")  # of NaN as well: the maximum of NaN and 0 is 0 on a GPU


@triton.jit
def _n_crossing(below, boundary, n_equal, goal, target):  # pragma: no cover
    """How many of the entries that equal the boundary are kept."""
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
    """One row of energies in registers; 32 halvings at most, of sums in float64."""
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
        # S(v) >= total - d_sae v, the energy above v: below this bound too much is left. 0 where all of it fits.
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
    """a_i ||d_i|| in float64, where a product of two float32 is exact and cannot leave the range."""
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
    """A row of any length and range in blocks; rescaled by a power of two where squares leave float32's range."""
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
