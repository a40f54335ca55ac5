"""Float64 sums over all tokens of a stream: means, correlations, explained variance."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.evals.metric import FORMS, PAPER, TokenColumns
from sae_lens_afa.evals.metric_list import METRICS
from sae_lens_afa.evals.moments import Array, PairMoments
from sae_lens_afa.evals.token_norms import TokenBlock, accurate_dtype

# A spread below this part of the mean square is float64 rounding: there is no variance to explain.
_NO_VARIANCE = 1e-12


def columns_by_form(columns: Mapping[str, Array], d_sae: int) -> dict[str, TokenColumns]:
    """Return the norms of tokens in each form, from columns by name."""
    return {
        form: TokenColumns(
            l0=columns["l0"],
            squared_error=columns["squared_error"],
            dense_norm=columns[f"{form}dense_norm"],
            feature_norm=columns[f"{form}feature_norm"],
            recons_norm=columns[f"{form}recons_norm"],
            d_sae=d_sae,
        )
        for form in FORMS
    }


class TokenSums:
    """Sums over all tokens of a stream, in memory that does not grow with it.

    Attributes:
        d_sae: Features of the SAE.
        n_tokens: Tokens counted.
        n_nonfinite: Tokens left out because they hold a NaN or an infinity.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.n_tokens = self.n_nonfinite = 0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._moments = {form: PairMoments(0, np.zeros(2), np.zeros((2, 2))) for form in FORMS}
        self._decoded, self._raw = _Spread(), _Spread()

    def add(self, columns: Mapping[str, Array], block: TokenBlock) -> None:
        """Count tokens by their norms (NaN where not known) and, for variances, their vectors."""
        self.n_tokens += len(columns["dense_norm"])
        forms = columns_by_form(columns, self.d_sae)
        for metric in METRICS:
            if metric.per_token is not None and metric.is_summed:
                values = metric.per_token(forms[metric.form or PAPER])
                defined = values[~np.isnan(values)]
                self._sums[metric.name] += float(defined.sum())
                self._counts[metric.name] += len(defined)
        for form, norms in forms.items():
            self._moments[form] += PairMoments.of(norms.dense_norm, norms.feature_norm)
        if block.dense is not None:
            squares, errors = columns["dense_norm"] ** 2, columns["squared_error"]
            self._decoded.add(block.dense, float(squares.sum()), float(errors.sum()))
        if block.raw is not None:
            x, x_hat = (vectors.to(accurate_dtype(vectors)) for vectors in block.raw)
            self._raw.add(x, float(x.square().sum()), float((x_hat - x).square().sum()))

    def merge(self, other: TokenSums) -> None:
        """Count the tokens of another stream too."""
        self.n_tokens += other.n_tokens
        self.n_nonfinite += other.n_nonfinite
        for name in other._counts:
            self._sums[name] += other._sums[name]
            self._counts[name] += other._counts[name]
        for form in FORMS:
            self._moments[form] += other._moments[form]
        self._decoded.merge(other._decoded)
        self._raw.merge(other._raw)

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric over the tokens for which it is defined; None if there are none."""
        return self._sums[name] / self._counts[name] if self._counts[name] else None

    def total(self, name: str) -> int | None:
        """Return how many tokens a metric's flag is set for; None if it is not known."""
        return int(self._sums[name]) if self._counts[name] else None

    def pearson(self, form: str) -> float | None:
        """Return the correlation of dense and feature norm; None where it is not known or a norm hardly varies."""
        moments = self._moments[form]
        return None if np.isnan(moments.mean).any() else moments.pearson()

    def explained_variance(self, *, raw: bool = False) -> float | None:
        """Return 1 - sum ||z - z^||^2 / sum ||z - mean z||^2, or that of the raw x at the hook point.

        None without the vectors or reconstructions of all tokens, or without a variance.
        """
        return (self._raw if raw else self._decoded).explained(self.n_tokens)


class _Spread:
    """Sums over vectors: of themselves, of their squared norms and of squared errors."""

    def __init__(self) -> None:
        self.count, self.squares, self.errors = 0, 0.0, 0.0
        self.total: Array = np.zeros(1)

    def add(self, vectors: Float[Tensor, "tokens d_in"], squares: float, errors: float) -> None:
        self.count += len(vectors)
        self.squares += squares
        self.errors += errors
        self.total = self.total + vectors.sum(0, dtype=accurate_dtype(vectors)).to("cpu", torch.float64).numpy()

    def merge(self, other: _Spread) -> None:
        self.count += other.count
        self.squares += other.squares
        self.errors += other.errors
        self.total = self.total + other.total

    def explained(self, n_tokens: int) -> float | None:
        if self.count == 0 or self.count != n_tokens or not math.isfinite(self.errors):
            return None
        variance = self.squares - float(self.total @ self.total) / self.count
        return None if variance <= _NO_VARIANCE * self.squares else 1 - self.errors / variance
