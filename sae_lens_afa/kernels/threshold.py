"""Machine code for a threshold per row: one pass that compares, writes and looks for what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.kernels.compiled import compiled, in_threads

Array = Any  # numpy arrays, whose element types numba tells apart and strict typing need not


def keep_above(
    acts: Float[Tensor, "rows d_sae"],
    threshold: Float[Tensor, " rows"],
    norm: Float[Tensor, " d_sae"],
    out: Float[Tensor, "rows d_sae"],
) -> None:
    """Write to `out` what exceeds its row's threshold, rows divided among torch's threads; all of one dtype on CPU."""

    def work(i: int, j: int) -> None:
        keep_rows(acts[i:j].numpy(), threshold[i:j].numpy(), norm.numpy(), out[i:j].numpy())

    in_threads(len(acts), acts.shape[1], work)


@compiled
def keep_rows(acts: Array, threshold: Array, norm: Array, out: Array) -> None:  # pragma: no cover
    """Write acts where acts * norm > threshold, else 0; a row that is not finite, or whose threshold is not, whole."""
    for r in range(len(acts)):
        row, kept, t, n_finite = acts[r], out[r], threshold[r], np.int32(0)
        zero = t - t
        for i in range(len(row)):
            # The difference is 0 but for NaN and infinities: counted, not branched on, so that the loop is vectorised.
            n_finite += np.int32(row[i] - row[i] == 0)
            kept[i] = row[i] if row[i] * norm[i] > t else zero
        if n_finite < len(row) or zero != 0:
            kept[:] = row
