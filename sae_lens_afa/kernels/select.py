"""Machine code for the selection in one row: the boundary energy is bracketed by passes over the row, no sort.

S(v), the energy of the entries above v, falls as v rises, and the boundary is where it crosses the squared target.
Each pass sums S at two values that enclose an estimate of the boundary, at vector speed, until few entries are left
between them; those are copied and the search goes on among them. The first estimate is taken from a sample, the next
by interpolation; a pass after one that gained little halves the bracket's bit patterns, which bounds their number
for any input.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_lens_afa.kernels.compiled import compiled, compiled_sum

# A row this kernel decided, and one it leaves to the literal rule.
DECIDED, UNDECIDED = 0, 1
# Largest e_i of a row for which float32 squares need no rescaling, as bit patterns; see `_sorting`.
_MIN_PEAK = int(np.float32(2.0**-40).view(np.int32))
_MAX_PEAK = int(np.float32(2.0**120).view(np.int32))
_INFINITY = 0x7F800000
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SAMPLES = 64
_FEW = 24
# Sums in another order than the literal rule's may differ by 1e-13 of their value; what is nearer to a tie than
# this many times as much is decided by the literal rule.
_NEAR_TIE = 1e-12

Array = Any  # numpy arrays, whose element types numba tells apart and strict typing need not


@compiled
def energies(acts: Array, norm: Array, energy: Array) -> tuple[Any, Any]:  # pragma: no cover
    """Fill `energy` with (a_i ||d_i||)^2; the largest bit pattern of |a_i|, and of an energy."""
    bits, energy_bits = acts.view(np.int32), energy.view(np.int32)
    worst = peak = np.int32(0)
    for i in range(len(acts)):
        worst = max(worst, bits[i] & _MAGNITUDE)
        scaled = max(acts[i], np.float32(0)) * norm[i]
        energy[i] = scaled * scaled
    for i in range(len(acts)):
        peak = max(peak, energy_bits[i] & _MAGNITUDE)
    return worst, peak


@compiled_sum
def total(values: Array) -> float:  # pragma: no cover
    """Sum in float64."""
    result = 0.0
    for i in range(len(values)):
        result += np.float64(values[i])
    return result


@compiled_sum
def above(values: Array, low: Any, high: Any) -> tuple[float, float]:  # pragma: no cover
    """Sums of what exceeds `low`, and of what exceeds `high`, in float64."""
    above_low = above_high = 0.0
    for i in range(len(values)):
        v = values[i]
        above_low += np.float64(v if v > low else np.float32(0))
        above_high += np.float64(v if v > high else np.float32(0))
    return above_low, above_high


@compiled
def between(values: Array, low: Any, high: Any, into: Array) -> int:  # pragma: no cover
    """Copy the values within (low, high] to the front of `into`, which may be `values` itself; their number."""
    # Of bit patterns, so that one comparison tells: of two, the first would be mispredicted every other time.
    ends = np.empty(2, np.float32)
    ends[0], ends[1] = low, high
    bits, copies, first = values.view(np.uint32), into.view(np.uint32), ends.view(np.uint32)[0] + np.uint32(1)
    width = ends.view(np.uint32)[1] - first
    n = 0
    for i in range(len(values)):
        if np.uint32(bits[i] - first) <= width:
            copies[n] = bits[i]
            n += 1
    return n


@compiled
def sort_descending(values: Array) -> None:  # pragma: no cover
    """Insertion sort in place: linear where all are equal, and else there are at most `_FEW`."""
    for i in range(1, len(values)):
        v = values[i]
        j = i
        while j > 0 and values[j - 1] < v:
            values[j] = values[j - 1]
            j -= 1
        values[j] = v


@compiled
def sampled_bracket(values: Array, share: float, sample: Array) -> tuple[Any, Any]:  # pragma: no cover
    """Two values that probably enclose the boundary, above which lies `share` of the sum."""
    n = 0
    for i in range(0, len(values), max(1, len(values) // _SAMPLES)):
        if values[i] > 0 and n < len(sample):
            sample[n] = values[i]
            n += 1
    if n == 0:
        return np.float32(0), np.float32(0)
    ordered = sample[:n]
    sort_descending(ordered)
    goal, reached, j = share * total(ordered), 0.0, 0
    while j < n - 1 and reached + ordered[j] <= goal:
        reached += ordered[j]
        j += 1
    margin = 1 + int(np.sqrt(min(j, n - j)))
    low = ordered[j + margin] if j + margin < n else np.float32(0)
    high = ordered[j - margin] if j >= margin else np.float32(np.inf)
    return low, high


@compiled
def boundary(  # pragma: no cover
    energy: Array, energy_sum: float, goal: float, peak: Any, buffer: Array, sample: Array
) -> tuple[int, Any, float]:
    """Bring the entries around the boundary to `buffer[:n]`, descending; n, what they exceed, the sum above them."""
    bits = np.empty(2, np.int32)
    ends = bits.view(np.float32)
    low, high = np.float32(0), peak
    low_sum, high_sum = energy_sum, 0.0
    values, outside, rounds, slow = energy, 0.0, 0, False
    p, q = sampled_bracket(energy, goal / energy_sum, sample)
    while True:
        few = max(_FEW, len(values) // 32)
        while True:
            ends[0], ends[1] = low, high
            if bits[1] - bits[0] <= 1 or low_sum - high_sum <= few * np.float64(low):
                break
            if rounds > 0:
                width = np.float64(high) - low
                share = (goal - high_sum) / (low_sum - high_sum)
                # As if energies were spread evenly between the two.
                guess = np.sqrt(np.float64(high) ** 2 - share * (np.float64(high) ** 2 - np.float64(low) ** 2))
                p, q = np.float32(guess - width / 12), np.float32(guess + width / 12)
                if slow:
                    bits[0] += (bits[1] - bits[0]) // 2
                    p, q = min(ends[0], q), max(ends[0], p)
            rounds += 1
            mass = low_sum - high_sum
            p, q = max(p, low), min(q, high)
            p_sum, q_sum = above(values, p, q)
            p_sum, q_sum = p_sum + outside, q_sum + outside
            if q_sum > goal:
                low, low_sum = q, q_sum
            elif p_sum > goal:
                low, low_sum = p, p_sum
                high, high_sum = q, q_sum
            else:
                high, high_sum = p, p_sum
            slow = low_sum - high_sum > 0.25 * mass
        n = between(values, low, high, buffer)
        values, outside = buffer[:n], high_sum
        if n <= _FEW or bits[1] - bits[0] <= 1:
            break
    sort_descending(values)
    return n, low, outside


@compiled
def cut_row(  # pragma: no cover
    energy: Array, target: float, peak: Any, buffer: Array, sample: Array
) -> tuple[Any, int, bool]:
    """Above which energy all is kept, how many of those equal to it, and whether that is beyond rounding."""
    goal = target * target
    nothing = np.float32(0)
    energy_sum = total(energy)
    if abs(energy_sum - goal) <= _NEAR_TIE * goal:
        return nothing, 0, False
    if energy_sum <= goal:
        return nothing, 0, True
    n, low, under = boundary(energy, energy_sum, goal, peak, buffer, sample)
    k = 0
    while k < n and under + buffer[k] <= goal:
        under += buffer[k]
        k += 1
    if k == n:
        return nothing, 0, False
    if under == 0:
        k = 1
    else:
        gain = (np.sqrt(under + buffer[k]) - target) - (target - np.sqrt(under))
        if abs(gain) <= _NEAR_TIE * target:
            return nothing, 0, False
        if gain < 0:
            k += 1
    if k == n:
        return low, 0, True
    cut, n_equal = buffer[k], 0
    while n_equal < k and buffer[k - 1 - n_equal] == cut:
        n_equal += 1
    return cut, n_equal, True


@compiled
def write_row(acts: Array, energy: Array, cut: Any, n_equal: int, out: Array) -> None:  # pragma: no cover
    """Copy what is kept and zero the rest; equal energies are kept lowest index first."""
    for i in range(len(acts)):
        out[i] = acts[i] if energy[i] > cut else np.float32(0)
    i = 0
    while n_equal > 0:
        if energy[i] == cut:
            out[i] = acts[i]
            n_equal -= 1
        i += 1


@compiled
def select(acts: Array, targets: Array, norm: Array, out: Array, status: Array) -> None:  # pragma: no cover
    """Apply the rule to float32 rows; `status` tells which rows are left to the literal rule, their `out` unset."""
    d_sae = acts.shape[1]
    energy, buffer = np.empty(d_sae, np.float32), np.empty(d_sae, np.float32)
    sample, bits = np.empty(2 * _SAMPLES, np.float32), np.empty(1, np.int32)
    for r in range(len(acts)):
        worst, bits[0] = energies(acts[r], norm, energy)
        peak = bits[0]
        finite = worst < _INFINITY and np.isfinite(targets[r])
        if finite and peak == 0 and acts[r].max() <= 0:
            out[r] = 0
            status[r] = DECIDED
            continue
        status[r] = UNDECIDED
        if finite and _MIN_PEAK <= peak <= _MAX_PEAK:
            target = max(targets[r], 0.0)
            cut, n_equal, certain = cut_row(energy, target, bits.view(np.float32)[0], buffer, sample)
            if certain:
                write_row(acts[r], energy, cut, n_equal, out[r])
                status[r] = DECIDED
