"""A uniform sample of a stream's rows that does not depend on their order; all of them up to its size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_lens_afa.evals.moments import Array

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Reservoir:
    """The `capacity` rows of a stream with the smallest keys.

    A row's key is a hash of its values and the seed; one of them numbers the rows of a stream. So it does not matter
    which parts of a stream come first, or from another process.

    Args:
        width: Values in a row.
        capacity: Most rows that are kept.
        seed: Another seed is another sample.
    """

    def __init__(self, width: int, capacity: int, seed: int) -> None:
        self.capacity, self.seed = capacity, seed
        self._rows: list[Array] = [np.empty((width, 0))]
        self._keys: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        self._held = 0

    def add(self, rows: Array) -> None:
        """Offer rows, [width, n]."""
        self._append(rows, _keys(rows, self.seed))

    def merge(self, other: Reservoir) -> None:
        """Offer the rows of another reservoir of the same capacity and seed."""
        for rows, keys in zip(other._rows, other._keys, strict=True):
            self._append(rows, keys)

    def rows(self) -> Array:
        """Return the rows that are kept, [width, n], in the order of their keys once some were dropped."""
        self._compact()
        return self._rows[0]

    def _append(self, rows: Array, keys: NDArray[np.uint64]) -> None:
        self._rows.append(rows)
        self._keys.append(keys)
        self._held += len(keys)
        if self._held > 2 * self.capacity:
            self._compact()

    def _compact(self) -> None:
        rows, keys = np.concatenate(self._rows, axis=1), np.concatenate(self._keys)
        if len(keys) > self.capacity:
            smallest = np.argsort(keys, kind="stable")[: self.capacity]
            rows, keys = rows[:, smallest], keys[smallest]
        self._rows, self._keys, self._held = [rows], [keys], len(keys)


def _keys(rows: Array, seed: int) -> NDArray[np.uint64]:
    key = _mix(np.full(rows.shape[1], seed % 2**64, dtype=np.uint64))
    for values in rows:
        key = _mix(key ^ np.ascontiguousarray(values).view(np.uint64))
    return key


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the splitmix64 finaliser of x: every bit of the input changes half of the output's."""
    x = x + _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
