"""Quantiles and correlations of values in which NaN marks what is not defined for a token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Norms whose standard deviation is below this part of their mean carry no correlation: under layer_norm every
# ||z|| is sqrt(d - 1) up to the 1e-5 that is added to the standard deviation.
CORRELATION_THRESHOLD = 1e-3


def median(values: Array) -> float | None:
    """Return the median of the values that are defined: of an even number, the mean of the two in the middle."""
    return quantile(values, 0.5)


def quantile(values: Array, q: float) -> float | None:
    """Return a quantile of the values that are defined, interpolated linearly; None if there are none."""
    values = values[~np.isnan(values)]
    return float(np.quantile(values, q)) if len(values) else None


def spearman(x: Array, y: Array) -> float | None:
    """Return the rank correlation; equal values share their mean rank."""
    return PairMoments.of(_ranks(x), _ranks(y)).pearson(threshold=0)


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


@dataclass(frozen=True)
class PairMoments:
    """Count, means and centred second moments of pairs, which add up without cancellation (Chan et al., 1983)."""

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> PairMoments:
        """Return the moments of the pairs (x_i, y_i)."""
        pairs = np.stack([x, y])
        mean = pairs.mean(1) if len(x) else np.zeros(2)
        centered = pairs - mean[:, None]
        return cls(len(x), mean, centered @ centered.T)

    def __add__(self, other: PairMoments) -> PairMoments:
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        weight = self.count * other.count / count
        mean = (self.count * self.mean + other.count * other.mean) / count
        return PairMoments(count, mean, self.scatter + other.scatter + weight * np.outer(delta, delta))

    def pearson(self, *, threshold: float = CORRELATION_THRESHOLD) -> float | None:
        """Return the correlation; None where one of the two hardly varies, relative to its mean."""
        if self.count < 2:
            return None
        deviation = np.sqrt(np.diag(self.scatter) / self.count)
        if np.any(deviation <= threshold * np.abs(self.mean)) or np.any(deviation == 0):
            return None
        return float(np.clip(self.scatter[0, 1] / np.sqrt(self.scatter[0, 0] * self.scatter[1, 1]), -1, 1))
