"""Quantiles and correlations against numpy's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sae_lens_afa.evals.moments import PairMoments, median, quantile, spearman

RNG = np.random.default_rng(0)
X = RNG.normal(size=60).round(1)  # with ties
Y = X + RNG.normal(size=60).round(1)


def test_quantiles_leave_out_what_is_not_defined():
    values = np.append(X, [np.nan, np.nan])
    assert median(values) == np.median(X)
    assert quantile(values, 0.95) == np.quantile(X, 0.95)
    assert median(np.full(3, np.nan)) is None


def test_rank_correlation_with_ties():
    assert spearman(X, Y) == pytest.approx(stats.spearmanr(X, Y).statistic, rel=1e-12)


@pytest.mark.parametrize("split", [0, 1, 23, 60])
def test_moments_add_up(split):
    parts = PairMoments.of(X[:split], Y[:split]) + PairMoments.of(X[split:], Y[split:])
    assert parts.count == 60
    assert parts.pearson() == pytest.approx(np.corrcoef(X, Y)[0, 1], rel=1e-12)


def test_no_correlation_of_what_hardly_varies_or_of_one_pair():
    assert PairMoments.of(np.ones(9), Y[:9]).pearson(threshold=0) is None
    assert PairMoments.of(1 + 1e-5 * X, Y).pearson() is None
    assert PairMoments.of(X[:1], Y[:1]).pearson() is None
