"""Float64 sums over all tokens of a stream: means, fractions, correlations, explained variance."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import torch
from torch import Tensor

from sae_lens_afa.evals import figures
from sae_lens_afa.evals.figures import Array, PairMoments
from sae_lens_afa.evals.token_norms import accurate_dtype

FORMS = ("", "centered_")
# A spread below this part of the mean square is float64 rounding: there is no variance to explain.
_NO_VARIANCE = 1e-12


class TokenSums:
    """What is known of all tokens of a stream, in memory that does not grow with it."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.n_tokens = 0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._moments = {form: PairMoments(0, np.zeros(2), np.zeros((2, 2))) for form in FORMS}
        self._dense_sum: Array | None = None

    def add(self, columns: dict[str, Array], dense: Tensor | None) -> None:
        """Count tokens by their norms (NaN where not known) and, for the variance, their dense vectors."""
        self.n_tokens += len(columns["dense_norm"])
        values = {name: columns[name] for name in ("l0", "squared_error")}
        values["nmse"] = figures.nmse(columns["squared_error"], columns["dense_norm"])
        values["dense_squared"] = columns["dense_norm"] ** 2
        for form in FORMS:
            z, f, z_hat = (columns[f"{form}{part}_norm"] for part in ("dense", "feature", "recons"))
            token = figures.per_token(z, f, z_hat, self.d_sae)
            known = ~np.isnan(z)
            own = {name: token[name] for name in ("epsilon_lbo", "afa_squared_error")}
            own["frac_over_activated"] = np.where(known, f > z, np.nan)
            own["frac_under_activated"] = np.where(known, f < z, np.nan)
            own["undefined"] = np.where(known, np.isnan(token["epsilon_lbo"] + token["norm_ratio"]), np.nan)
            values |= {f"{form}{name}": value for name, value in own.items()}
            self._moments[form] += PairMoments.of(z, f)
        for name, value in values.items():
            defined = value[~np.isnan(value)]
            self._sums[name] += float(defined.sum())
            self._counts[name] += len(defined)
        if dense is not None:
            self._add_dense(dense.sum(0, dtype=accurate_dtype(dense)).to("cpu", torch.float64).numpy())

    def merge(self, other: TokenSums) -> None:
        """Count the tokens of another stream too."""
        self.n_tokens += other.n_tokens
        for name in other._counts:
            self._sums[name] += other._sums[name]
            self._counts[name] += other._counts[name]
        for form in FORMS:
            self._moments[form] += other._moments[form]
        if other._dense_sum is not None:
            self._add_dense(other._dense_sum)

    def _add_dense(self, total: Array) -> None:
        self._dense_sum = total if self._dense_sum is None else self._dense_sum + total

    def mean(self, name: str) -> float | None:
        """Mean over the tokens for which the figure is defined; None if there are none."""
        return self._sums[name] / self._counts[name] if self._counts[name] else None

    def count(self, name: str) -> int | None:
        """How many tokens the flag is set for; None if it is not known."""
        return int(self._sums[name]) if self._counts[name] else None

    def pearson(self, form: str) -> float | None:
        """Correlation of dense and feature norm; None where it is not known or a norm hardly varies."""
        return self._moments[form].pearson() if self._counts[f"{form}afa_squared_error"] else None

    def explained_variance(self) -> float | None:
        """1 - sum ||z - z^||^2 / sum ||z - mean z||^2; None without reconstructions or without a variance."""
        if self._dense_sum is None or not self._counts["squared_error"]:
            return None
        squares = self._sums["dense_squared"]
        variance = squares - float(self._dense_sum @ self._dense_sum) / self.n_tokens
        if variance <= _NO_VARIANCE * squares:
            return None
        return 1 - self._sums["squared_error"] / variance
