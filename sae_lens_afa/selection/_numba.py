"""The compiled back end for CPU: what numba's kernels cannot take as it is, is brought to them here."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa._memory import empty
from sae_lens_afa.kernels.compiled import in_threads
from sae_lens_afa.kernels.select import DECIDED, select
from sae_lens_afa.selection._sorting import select_wide_range

_CHUNK_ELEMENTS = 1 << 17


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
    nothing = acts.new_zeros(())
    status = np.empty(n_rows, dtype=np.uint8)
    as_it_is = acts.dtype == torch.float32 and acts.is_contiguous()
    step = max(1, n_rows if as_it_is else _CHUNK_ELEMENTS // d_sae)

    def work(first: int, last: int) -> None:
        for start in range(first, last, step):
            stop = min(start + step, last)
            rows = acts[start:stop]
            values = rows.float().contiguous()
            kept = out[start:stop] if as_it_is else torch.empty_like(values)
            select(values.numpy(), target[start:stop].numpy(), kernel_norm, kept.numpy(), status[start:stop])
            if not as_it_is:
                torch.where(kept > 0, rows, nothing, out=out[start:stop])

    in_threads(n_rows, d_sae, work)
    for r in np.flatnonzero(status != DECIDED):
        out[r] = select_wide_range(acts[r], float(target[r]), norm)
    return out
