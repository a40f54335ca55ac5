"""Selection on accelerators by torch alone: the boundary energy is found by bisection on its float32 bit pattern.

Non-negative floats are ordered as their bit patterns are, so 32 halvings find the exact boundary value of every row at
once: no sort with its indices, no wait of the host for the device, float64 sums throughout.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Peaks a_i ||d_i|| of a row between which float32 squares need no rescaling (see `_sorting`).
_MIN_PEAK, _MAX_PEAK = 2.0**-20, 2.0**60
_HALVINGS = 32
_ENTRIES = 1 << 22


def select_by_bisection(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "rows d_sae"]:
    """Apply `norm_matching_topk` to each row; `target_norm` is float64."""
    out = torch.empty_like(acts, memory_format=torch.contiguous_format)
    norm = None if decoder_norm is None else decoder_norm.detach().double()
    # A sixty-fourth of the rows at a time: the float64 temporaries stay below a fifth of one [rows, d_sae]. More where
    # that is little: a GPU spends as long on starting work on a few rows as on doing it.
    step = max(1, len(acts) // 64, _ENTRIES // acts.shape[1])
    for start in range(0, len(acts), step):
        rows, target = acts[start : start + step], target_norm[start : start + step]
        scaled = rows.double().clamp_(min=0)
        if norm is not None:
            scaled.mul_(norm)
        finite = rows.isfinite().all(-1) & target.isfinite() & scaled.isfinite().all(-1)
        keep = _mask(scaled, target.clamp(min=0)) | ~finite[:, None]
        out[start : start + step] = torch.where(keep, rows, 0)
    return out


def _mask(scaled: Float[Tensor, "rows d_sae"], target: Float[Tensor, " rows"]) -> Bool[Tensor, "rows d_sae"]:
    """Mark the entries that are kept, from a_i ||d_i|| in float64 (a product of two float32 is exact there)."""
    peak = scaled.amax(-1)
    fits = (peak >= _MIN_PEAK) & (peak <= _MAX_PEAK)
    exponent = torch.where(fits, 0, torch.frexp(peak).exponent).double()
    # In two steps, each a power of two that float64 holds, also for the smallest and the largest peaks.
    half = torch.floor(exponent / 2)
    scaled = scaled.mul_(torch.exp2(-half)[:, None]).mul_(torch.exp2(half - exponent)[:, None])
    target = target * torch.exp2(-half) * torch.exp2(half - exponent)
    energy = scaled.float().square_()
    goal = target.square()

    boundary = _boundary(energy, goal)
    larger, equal = energy > boundary[:, None], energy == boundary[:, None]
    below = torch.where(larger, energy, 0).sum(-1, dtype=torch.float64)
    n_equal = equal.sum(-1)
    # Of the entries equal to the boundary value, `whole` fit under the target; one more crosses it.
    whole = ((goal - below) / boundary.double()).floor_().clamp_(min=0).minimum(n_equal - 1)
    under = below + whole * boundary
    over = under + boundary
    none_kept = ~larger.any(-1) & (whole == 0)
    take = whole + (none_kept | (over.sqrt() - target < target - under.sqrt()))
    ranks = equal.cumsum(-1, dtype=torch.int32)
    # Boundary 0: all positive entries together stay within the target.
    return larger | (equal & (ranks <= take[:, None]) & (boundary > 0)[:, None])


def _boundary(energy: Float[Tensor, "rows d_sae"], goal: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Find the smallest value v with sum of (energy > v) <= goal: an entry of the row, or 0 if all of it fits."""
    low = torch.full_like(goal, -1, dtype=torch.int32)
    high = energy.amax(-1).view(torch.int32)
    for _ in range(_HALVINGS):
        middle = low + (high - low) // 2
        value = middle.clamp(min=0).view(torch.float32)[:, None]
        fits = torch.where(energy > value, energy, 0).sum(-1, dtype=torch.float64) <= goal
        step = high - low > 1
        high = torch.where(step & fits, middle, high)
        low = torch.where(step & ~fits, middle, low)
    return high.view(torch.float32)
