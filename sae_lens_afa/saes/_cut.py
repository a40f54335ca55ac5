"""The cut of a matching: the value of the last match, found among values alone.

Nothing as large as the batch is sorted with its indices. Where ranks share the batch, it is that of all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sae_lens_afa import over_ranks

_SAMPLES = 2**15


def rows_per_block(rows: Tensor) -> int:
    """Return the rows of a chunk: what stays in cache on a CPU, few launches elsewhere; no [tokens, d_sae] beside."""
    return max(1, 2**18 // rows.shape[-1] if on_cpu(rows) else len(rows) // 4)


def on_cpu(rows: Tensor) -> bool:
    return rows.device.type == "cpu"


def global_cut(rows: Tensor, n_matches: int) -> Tensor:
    """Find the n-th largest entry of all if it is positive, else 0.

    On a CPU a random sample says above which value the cut is almost sure to be, by four standard deviations of the
    sample's count: only the few entries above it are ordered. Where the sample misled, all positive ones are.
    """
    blocks = rows.split(rows_per_block(rows))
    if not on_cpu(rows) or over_ranks.n_ranks() > 1:
        goal = torch.full((1,), n_matches, device=rows.device)
        return _bisect(goal, lambda value: torch.stack([(part >= value).sum() for part in blocks]).sum()[None])[0]
    positions = torch.randint(rows.numel(), (_SAMPLES,), generator=torch.Generator().manual_seed(0))
    sample = rows.reshape(-1)[positions].float().nan_to_num(0.0).clamp(min=0).sort(descending=True).values
    expected = n_matches / rows.numel() * _SAMPLES
    rank = int(expected + 4 * expected**0.5 + 8)
    for floor in (float(sample[rank]) if rank < _SAMPLES else 0.0, 0.0):
        above = np.concatenate([part[part > floor].float().numpy() for part in blocks])
        if len(above) >= n_matches:
            return torch.tensor(np.partition(above, len(above) - n_matches)[len(above) - n_matches])
    return torch.zeros(())


def feature_cuts(rows: Tensor, n_matches: Tensor) -> Tensor:
    """Find the m_i-th largest entry of each column if it is positive, else 0; inf where m_i = 0."""
    n_tokens, d_sae = rows.shape
    if not on_cpu(rows) or over_ranks.n_ranks() > 1:
        blocks = rows.split(rows_per_block(rows))
        cuts = _bisect(n_matches, lambda value: torch.stack([(part >= value).sum(0) for part in blocks]).sum(0))
        return torch.where(n_matches > 0, cuts, torch.inf)
    place = (n_tokens - n_matches.numpy()).clip(0, n_tokens - 1)
    cuts = np.empty(d_sae, dtype=np.float32)
    step = max(1, 2**18 // n_tokens)
    for start in range(0, d_sae, step):
        part = rows[:, start : start + step].T
        columns = part.to(torch.float32, copy=True, memory_format=torch.contiguous_format).numpy()
        np.fmax(columns, 0, out=columns)  # 0 for NaN too
        columns.sort(axis=1)  # vectorised by numpy, and without indices
        cuts[start : start + step] = columns[np.arange(len(columns)), place[start : start + step]]
    return torch.where(n_matches > 0, torch.from_numpy(cuts), torch.inf)


def _bisect(n_matches: Tensor, count_from: Callable[[Tensor], Tensor]) -> Tensor:
    """Find the largest value that at least `n_matches` entries reach, bit by bit: floats >= 0 are ordered as bits."""
    bits = torch.zeros_like(n_matches, dtype=torch.int32)
    for bit in reversed(range(31)):
        trial = bits | (1 << bit)
        counts = over_ranks.summed(count_from(trial.view(torch.float32)))
        bits = torch.where(counts >= n_matches, trial, bits)
    return bits.view(torch.float32)
