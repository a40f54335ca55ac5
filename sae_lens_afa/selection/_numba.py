"""The compiled back end for CPU: what numba's kernels cannot take as it is, is brought to them here."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa._memory import empty
from sae_lens_afa.kernels.compiled import in_threads
from sae_lens_afa.kernels.select import DECIDED, UNDECIDED, select
from sae_lens_afa.selection._sorting import select_wide_range

# Of rows that are converted first: some part of the rows, and no more than stays in a large cache.
_CHUNK_ELEMENTS = 1 << 21


def select_compiled(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "rows d_sae"]:
    """Apply the rule of `sae_lens_afa.selection` to each row of a CPU tensor; rows are divided among torch's threads.

    Rows that the kernel leaves undecided, which are rare, go by the rule as it reads: those that are not finite or
    leave float32's range, and near-ties, so that the order in which sums are taken decides nothing.
    """
    acts, target = acts.detach(), target_norm.detach().double().contiguous()
    n_rows, d_sae = acts.shape
    norm = None if decoder_norm is None else decoder_norm.detach().float().contiguous()
    kernel_norm = np.ones(d_sae, dtype=np.float32) if norm is None else norm.numpy()
    out = empty(acts.shape, acts)
    status = np.empty(n_rows, dtype=np.uint8)

    def decide(values: Tensor, kept: Tensor, start: int) -> None:
        def work(i: int, j: int) -> None:
            here = slice(start + i, start + j)
            select(values[i:j].numpy(), target[here].numpy(), kernel_norm, kept[i:j].numpy(), status[here])

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
        status[((acts > 0).any(-1) & ~(out > 0).any(-1)).numpy()] = UNDECIDED
    for r in np.flatnonzero(status != DECIDED):
        out[r] = select_wide_range(acts[r], float(target[r]), norm)
    return out
