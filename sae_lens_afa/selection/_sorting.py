"""Selection on a CPU without a compiler: numpy's vectorised sort, which is many times torch's.

Rows are taken a few at a time, so that all passes run in cache and the extra memory is a small part of one
[tokens, d_sae]. Per row: square, sort a copy, sum the sorted energies in blocks (a float64 cumulative sum of
the whole row would cost more than the sort), walk to the block and then to the entry where the energy crosses
the squared target, and keep what exceeds the first entry that is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 128
_CHUNK_ELEMENTS = 1 << 17
# Largest e_i of a row for which float32 squares need no rescaling. In a row within these bounds whatever
# underflows is below 2^-86 of the row's energy, which float64 sums do not see either.
_MIN_PEAK, _MAX_PEAK = 2.0**-40, 2.0**120


class _Cut(NamedTuple):
    """The cut of each row: keep `energy > first_left_out`; where `tied` the first equal to it as well, `k` in all."""

    k: NDArray[np.int64]
    first_left_out: NDArray[np.float32]
    tied: NDArray[np.bool_]


def select_by_sorting(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> tuple[Float[Tensor, "rows d_sae"], list[int]]:
    """Apply `norm_matching_topk` to each row of a CPU tensor; `target_norm` is float64, `decoder_norm` float32.

    Returns:
        What is kept, and the rows that this cannot decide: not finite, or with squares beyond float32's range.
    """
    n_rows, d_sae = acts.shape
    out = torch.empty_like(acts, memory_format=torch.contiguous_format)
    nothing = acts.new_zeros(())
    undecided: list[int] = []
    # Two buffers of `step` rows: at most an eighth of one [rows, d_sae] float32.
    step = max(1, min(_CHUNK_ELEMENTS // d_sae, n_rows // 16))
    energy = torch.zeros(step, -(-d_sae // _BLOCK) * _BLOCK)  # zero padding sorts to the end and adds nothing
    order = np.empty(energy.shape, dtype=np.float32)
    for start in range(0, n_rows, step):
        rows = acts[start : start + step]
        target = target_norm[start : start + step].numpy()
        chunk, ordered = energy[: len(rows)], order[: len(rows)]
        e = chunk[:, :d_sae]
        e.copy_(rows)
        lowest, highest = e.numpy().min(-1), e.numpy().max(-1)  # torch's aminmax is 20 times slower along rows
        if acts.dtype == torch.float64:  # may be positive and 0 in float32
            highest = rows.amax(-1).numpy()
        e.clamp_(min=0)
        if decoder_norm is not None:
            e.mul_(decoder_norm)
        e.square_()
        np.copyto(ordered, chunk.numpy())
        ordered.sort(axis=-1)
        cut = _cut(ordered, target)
        kept = e > torch.from_numpy(cut.first_left_out)[:, None]
        torch.where(kept, rows, nothing, out=out[start : start + step])
        if cut.tied.any():
            # All rows of the chunk at once: in bfloat16 nearly every row has equal values at its boundary.
            boundary = cut.first_left_out[:, None]
            equal = (e.numpy() == boundary) & cut.tied[:, None]
            n_equal = cut.k - (e.numpy() > boundary).sum(-1)
            first = torch.from_numpy(equal & (equal.cumsum(-1, dtype=np.int32) <= n_equal[:, None]))
            torch.where(kept | first, rows, nothing, out=out[start : start + step])  # lowest index first
        undecided += (start + np.flatnonzero(~_is_plain(ordered[:, -1], lowest, highest, target))).tolist()
    return out, undecided


def _cut(ordered: NDArray[np.float32], target: NDArray[np.float64]) -> _Cut:
    """Find k* of each row from its ascending energies, shape [rows, multiple of the block size].

    Two looks instead of one long sum: which block the energy, summed from the largest down, crosses the squared target
    in, and then at which of its entries.
    """
    n_rows, width = ordered.shape
    index = np.arange(n_rows)
    blocks = ordered.reshape(n_rows, -1, _BLOCK)
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are replaced afterwards
        block_energy = np.cumsum(blocks.sum(axis=-1, dtype=np.float64)[:, ::-1], axis=-1)
        squared = np.square(np.maximum(target, 0.0))
        everything = block_energy[:, -1] <= squared
        n_blocks = np.minimum((block_energy <= squared[:, None]).sum(-1), blocks.shape[1] - 1)
        before = np.where(n_blocks > 0, block_energy[index, n_blocks - 1], 0.0)
        crossing = blocks[index, blocks.shape[1] - 1 - n_blocks, ::-1]
        within = np.concatenate([before[:, None], crossing], axis=-1, dtype=np.float64).cumsum(-1)
        inside = np.minimum((within[:, 1:] <= squared[:, None]).sum(-1), _BLOCK - 1)
        k = n_blocks * _BLOCK + inside
        below, above = np.sqrt(within[index, inside]), np.sqrt(within[index, inside + 1])
        k += (k == 0) | (above - target < target - below)
    k[everything] = width
    last_kept = ordered[index, width - k]
    first_left_out = np.where(k < width, ordered[index, np.maximum(width - k - 1, 0)], np.float32(0))
    return _Cut(k, first_left_out, tied=(first_left_out == last_kept) & (first_left_out > 0))


def _is_plain(
    peak: NDArray[np.float32],
    lowest: NDArray[np.float32],
    highest: NDArray[Any],  # float32 or float64
    target: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell which rows are finite, with squares within float32's range (or without any positive entry)."""
    in_range = ((peak >= _MIN_PEAK) & (peak <= _MAX_PEAK)) | (highest <= 0)
    return in_range & np.isfinite(lowest) & np.isfinite(target)


def select_literally(acts: Tensor, target: float, decoder_norm: Tensor | None) -> Tensor:
    """Select in one row by the rule as it reads, whatever the row's range; one that is not finite stays as it is."""
    a = acts.double().numpy()
    norm = np.ones_like(a) if decoder_norm is None else decoder_norm.double().numpy()
    if not (np.isfinite(a).all() and np.isfinite(norm).all() and np.isfinite(target)):
        return acts
    # Powers of two first, so that neither the product nor its square leaves the range: exact in float64.
    exponent = int(np.frexp(a.max())[1]) + int(np.frexp(norm.max())[1])
    scaled = np.ldexp(np.maximum(a, 0.0), -int(np.frexp(a.max())[1])) * np.ldexp(norm, -int(np.frexp(norm.max())[1]))
    peak = int(np.frexp(scaled.max())[1])
    energy = np.square(np.ldexp(scaled, -peak).astype(np.float32))
    order = np.argsort(-energy, kind="stable")[: int((energy > 0).sum())]
    if len(order) == 0:
        return torch.zeros_like(acts)
    goal = float(np.ldexp(max(target, 0.0), -(exponent + peak)))
    prefix = np.cumsum(energy[order], dtype=np.float64)
    k = len(order) if prefix[-1] <= goal * goal else int(np.abs(np.sqrt(prefix) - goal).argmin()) + 1
    kept = torch.zeros_like(acts)
    kept[order[:k]] = acts[order[:k]]
    return kept
