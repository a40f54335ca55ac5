"""The figures of an evaluation as pure functions of per-token norms; NaN marks what is not defined for a token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

QUANTILES = (("q05", 0.05), ("q25", 0.25), ("q75", 0.75), ("q95", 0.95))
# Norms whose standard deviation is below this part of their mean carry no correlation: under layer_norm every
# ||z|| is sqrt(d - 1) up to the 1e-5 that is added to the standard deviation.
CORRELATION_THRESHOLD = 1e-3


def per_token(dense: Array, feature: Array, recons: Array, d_sae: int) -> dict[str, Array]:
    """Norm ratio, its two factors, eps-LBO and squared norm difference of each token (section 4)."""
    import torch  # not with the module: `sae-lens-afa plot` computes nothing

    from sae_lens_afa.functional import epsilon_lbo

    with np.errstate(divide="ignore", invalid="ignore"):
        eps = epsilon_lbo(torch.from_numpy(dense), torch.from_numpy(feature), d_sae).numpy()
        return {
            "norm_ratio": _defined(feature / dense),
            "activation_ratio": _defined(feature / recons),
            "reconstruction_ratio": _defined(recons / dense),
            "epsilon_lbo": eps,
            "afa_squared_error": (feature - dense) ** 2,
        }


def nmse(squared_error: Array, dense: Array) -> Array:
    """||z - z^||^2 / ||z||^2 of each token."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _defined(squared_error / dense**2)


def _defined(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)


def median(values: Array) -> float | None:
    """Median of the values that are defined; of an even number, the mean of the two in the middle."""
    return quantile(values, 0.5)


def quantile(values: Array, q: float) -> float | None:
    """Quantile of the values that are defined, interpolated linearly."""
    values = values[~np.isnan(values)]
    return float(np.quantile(values, q)) if len(values) else None


def spearman(x: Array, y: Array) -> float | None:
    """Rank correlation; equal values share their mean rank."""
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
        """Moments of the pairs (x_i, y_i)."""
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
        """Correlation; None where one of the two hardly varies, relative to its mean."""
        if self.count < 2:
            return None
        deviation = np.sqrt(np.diag(self.scatter) / self.count)
        if np.any(deviation <= threshold * np.abs(self.mean)) or np.any(deviation == 0):
            return None
        return float(np.clip(self.scatter[0, 1] / np.sqrt(self.scatter[0, 0] * self.scatter[1, 1]), -1, 1))
