"""The norm-matching rule in machine code, for CPUs: one row at a time, by a few passes over it and without a sort.

Let S(v) be the sum of a row's energies e_i = (a_i ||d_i||)^2 that exceed v. It falls as v rises, and the row's boundary
is the energy at which it crosses the squared target: what is larger is kept, what is smaller is not. Sorting 12,288
energies to find one value costs more than everything else. Instead:

1. The boundary is enclosed between two values, low and high, with S(low) > target^2 >= S(high). That holds at the
   start, for 0 and the largest energy, and after every pass.
2. A pass over the row sums S at two probes, p < q, at vector speed. Whichever of the three parts the crossing is in
   becomes the new bracket. Probes close around a good estimate so leave a narrow one: two passes do for most rows.
3. Once few energies can be left between low and high, they are copied. The search goes on among the copies, until at
   most `_FEW` are left; these are sorted and added one by one, up to the two candidates for k*.

What this cannot decide beyond doubt is left to the literal rule (`selection._sorting.select_literally`): rows that are
not finite or whose squares leave float32's range, and near-ties. Sums are taken here in another order than there, which
changes their last bits: where these would decide, the result would depend on the back end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa._memory import empty
from sae_lens_afa.kernels.compiled import compiled, compiled_sum, in_threads

_DECIDED, _UNDECIDED = 0, 1
# The kernel reads bit patterns where it can. Those of non-negative floats are ordered as the floats are, integers are
# compared faster, and NaN, which no comparison of floats finds, is a pattern above that of infinity.
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign's
_INFINITY = 0x7F800000
# Largest energy of a row for which float32 squares need no rescaling; see `selection._sorting`.
_MIN_PEAK = int(np.float32(2.0**-40).view(np.int32))
_MAX_PEAK = int(np.float32(2.0**120).view(np.int32))
# Entries looked at for the first estimate, and entries that are sorted rather than searched.
_SAMPLES, _FEW = 64, 24
# Sums in another order may differ by 1e-13 of their value: ten times as much is near enough to a tie to be left alone.
_NEAR_TIE = 1e-12
# Elements of rows that are converted to float32 first, at a time: no more than stays in a large cache.
_CHUNK_ELEMENTS = 1 << 21

Array = Any  # numpy arrays, whose element types numba tells apart and strict typing need not


def select_compiled(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> tuple[Float[Tensor, "rows d_sae"], list[int]]:
    """Apply the rule to each row of a CPU tensor; rows are divided among torch's threads.

    Args:
        acts: Pre-activations of any floating dtype, without gradient.
        target_norm: Norms to match, float64, contiguous.
        decoder_norm: Norms of decoder rows, float32, contiguous; None stands for all ones.

    Returns:
        What is kept, and the rows that are left to the literal rule, which are rare.
    """
    n_rows, d_sae = acts.shape
    norm = np.ones(d_sae, dtype=np.float32) if decoder_norm is None else decoder_norm.numpy()
    out = empty(acts.shape, acts)
    status = np.empty(n_rows, dtype=np.uint8)

    def decide(values: Tensor, kept: Tensor, start: int) -> None:
        def work(i: int, j: int) -> None:
            here = slice(start + i, start + j)
            select_rows(values[i:j].numpy(), target_norm[here].numpy(), norm, kept[i:j].numpy(), status[here])

        in_threads(len(values), d_sae, work)

    if acts.dtype == torch.float32 and acts.is_contiguous():
        decide(acts, out, 0)
    else:
        nothing = acts.new_zeros(())
        step = max(1, min(n_rows // 16, _CHUNK_ELEMENTS // d_sae))
        for start in range(0, n_rows, step):
            rows = acts[start : start + step]
            values = rows.float().contiguous()
            kept = torch.empty_like(values)
            decide(values, kept, start)
            torch.where(kept > 0, rows, nothing, out=out[start : start + step])
    if acts.dtype == torch.float64:
        # What float32 cannot hold is 0 to the kernel.
        status[((acts > 0).any(-1) & ~(out > 0).any(-1)).numpy()] = _UNDECIDED
    return out, np.flatnonzero(status != _DECIDED).tolist()


@compiled
def energies(acts: Array, norm: Array, energy: Array) -> tuple[Any, Any]:  # pragma: no cover
    """Fill `energy` with (a_i ||d_i||)^2; return the largest bit pattern of |a_i|, and of an energy."""
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
    """Add up in float64."""
    result = 0.0
    for i in range(len(values)):
        result += np.float64(values[i])
    return result


@compiled_sum
def above(values: Array, low: Any, high: Any) -> tuple[float, float]:  # pragma: no cover
    """Add up, in float64, what exceeds `low`, and what exceeds `high`: one pass, two values of S."""
    above_low = above_high = 0.0
    for i in range(len(values)):
        v = values[i]
        above_low += np.float64(v if v > low else np.float32(0))
        above_high += np.float64(v if v > high else np.float32(0))
    return above_low, above_high


@compiled
def between(values: Array, low: Any, high: Any, into: Array) -> int:  # pragma: no cover
    """Copy the values within (low, high] to the front of `into`, which may be `values` itself; return their number."""
    # One unsigned comparison of bit patterns tells: what is below the interval wraps around to a large number. Of two
    # comparisons, the processor would mispredict the first every other time.
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
    """Sort in place by insertion: linear where all are equal, and else there are at most `_FEW` (or a sample)."""
    for i in range(1, len(values)):
        v = values[i]
        j = i
        while j > 0 and values[j - 1] < v:
            values[j] = values[j - 1]
            j -= 1
        values[j] = v


@compiled
def sampled_bracket(values: Array, share: float, sample: Array) -> tuple[Any, Any]:  # pragma: no cover
    """Guess from a sample two values that enclose the boundary, above which lies `share` of the sum.

    The sample's own crossing, at its j-th largest of n, is off by about sqrt(j) places, or sqrt(n - j) near the other
    end; the probes are set so many places to either side. A bad guess costs a pass, not the result.
    """
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
def enclose(  # pragma: no cover
    energy: Array, energy_sum: float, goal: float, peak: Any, buffer: Array, sample: Array
) -> tuple[int, Any, float]:
    """Bring the energies around the boundary to `buffer[:n]`, descending.

    Returns n, the value `low` that these and all larger ones exceed, and the sum of the larger ones.
    """
    # Invariants: S(low) > goal >= S(high), with low_sum = S(low) and high_sum = S(high); `values` holds all energies
    # within (low, high], and `outside` is the sum of those above them that it no longer holds. `ends` and `bits` are
    # one memory, seen as floats and as bit patterns, by which a bracket is halved and known to be as narrow as can be.
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
            # Each energy left in between is more than low: no more than (their sum) / low of them can be there.
            # Neighbouring floats have only equal energies between them.
            if bits[1] - bits[0] <= 1 or low_sum - high_sum <= few * np.float64(low):
                break
            if rounds > 0:
                # As if energies were spread evenly from low to high: then the sum above v falls as high^2 - v^2 does.
                width = np.float64(high) - low
                share = (goal - high_sum) / (low_sum - high_sum)
                guess = np.sqrt(np.float64(high) ** 2 - share * (np.float64(high) ** 2 - np.float64(low) ** 2))
                p, q = np.float32(guess - width / 12), np.float32(guess + width / 12)
                if slow:
                    # The guess was bad, so one probe is now the middle of the bit patterns. Every pass so either takes
                    # three quarters of the sum out of the bracket or is followed by one that halves its patterns:
                    # the number of passes is bounded for any input, equal or geometric energies included.
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
    """Decide a row: above which energy all is kept, how many of those equal to it, and whether that is certain."""
    goal = target * target
    nothing = np.float32(0)
    energy_sum = total(energy)
    if abs(energy_sum - goal) <= _NEAR_TIE * goal:
        return nothing, 0, False
    if energy_sum <= goal:
        return nothing, 0, True
    n, low, under = enclose(energy, energy_sum, goal, peak, buffer, sample)
    # From the sum of what is surely kept, one energy after the other up to the crossing: the two candidates for k*
    # are without buffer[k] and with it.
    k = 0
    while k < n and under + buffer[k] <= goal:
        under += buffer[k]
        k += 1
    if k == n:  # the crossing is not where the other order of summing saw it
        return nothing, 0, False
    if under == 0:  # at least one is kept
        k = 1
    else:
        gain = (np.sqrt(under + buffer[k]) - target) - (target - np.sqrt(under))
        if abs(gain) <= _NEAR_TIE * target:
            return nothing, 0, False
        if gain < 0:
            k += 1
    if k == n:
        return low, 0, True
    # What exceeds the first energy left out is kept, and of those equal to it the ones that precede it here.
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
def select_rows(acts: Array, targets: Array, norm: Array, out: Array, status: Array) -> None:  # pragma: no cover
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
            status[r] = _DECIDED
            continue
        status[r] = _UNDECIDED
        if finite and _MIN_PEAK <= peak <= _MAX_PEAK:
            target = max(targets[r], 0.0)
            cut, n_equal, certain = cut_row(energy, target, bits.view(np.float32)[0], buffer, sample)
            if certain:
                write_row(acts[r], energy, cut, n_equal, out[r])
                status[r] = _DECIDED
