"""Machine code for a threshold per row: one pass that compares, writes and looks for what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_lens_afa.kernels.compiled import compiled

Array = Any  # numpy arrays, whose element types numba tells apart and strict typing need not


@compiled
def above(acts: Array, threshold: Array, norm: Array, out: Array) -> None:  # pragma: no cover
    """out = acts where acts * norm > threshold, else 0; a row that is not finite, or whose threshold is not, whole."""
    for r in range(len(acts)):
        row, kept, t, n_finite = acts[r], out[r], threshold[r], np.int32(0)
        zero = t - t
        for i in range(len(row)):
            # The difference is 0 but for NaN and infinities.
            n_finite += np.int32(row[i] - row[i] == 0)
            kept[i] = row[i] if row[i] * norm[i] > t else zero
        if n_finite < len(row) or zero != 0:
            kept[:] = row
