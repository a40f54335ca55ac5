"""The Zipf law of feature densities: its fit, the densities that it expects, and whole matches by it.

A feature's density is the share of tokens on which it fires. Sorted by density, the features of trained SAEs follow
a Zipf law, but for the rarest, which fall below it. Mutual Choice and Feature Choice SAEs (Ayonrinde, arXiv
2411.02124) use the law twice: to say which features are under-used, and how many matches each feature may have.

That principle is the paper's. This package's choices are the form of the law, Zipf-Mandelbrot,

    density(rank) = scale * (rank + offset)^-exponent,   rank = 1, ..., d_sae,

how it is fitted, and how it becomes whole numbers of matches: no more than there are tokens, at least one where the
batch allows, fractions rounded by largest remainder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MIN_FEATURES", "ZipfLaw", "allocate_matches", "expected_densities", "fit_zipf"]

_Array = NDArray[np.float64]

MIN_FEATURES = 3
_POINTS = 1024
# The fit starts from so many ranks and is widened by this factor, as long as the ranks that would be added do not
# lie below the law by more than this.
_HEAD, _WIDENING, _FALL_OFF = 64, 2**0.25, 1.25
_OFFSETS = np.concatenate([[0.0], np.geomspace(1e-2, 1e5, 71)])
_GOLDEN = (5**0.5 - 1) / 2
_SECTIONS, _HALVINGS = 90, 100
_TINY, _LOG_MAX = 1e-250, 700.0
# Of the turn of a batch, see `_by_turns`: successive multiples modulo 1 are spread evenly.
_TURN = _GOLDEN


class ZipfLaw(NamedTuple):
    """A law of densities by rank: density(rank) = scale * (rank + offset)^-exponent.

    Attributes:
        exponent: s >= 0; 0 makes all features alike.
        offset: q >= 0; flattens the law at the frequent end.
        scale: Factor in front. `expected_densities` does without it.
        r_squared: Share of the variance of log density that the law explains over the ranks it was fitted to.
        last_rank: The last of those ranks; rarer features fall below the law.

    Example:
        >>> from sae_lens_afa.saes.zipf import ZipfLaw
        >>> ZipfLaw(exponent=1.0).offset
        0.0
    """

    exponent: float
    offset: float = 0.0
    scale: float = 1.0
    r_squared: float = 1.0
    last_rank: int = 0


def fit_zipf(densities: Tensor, *, exponent: float | None = None, offset: float | None = None) -> ZipfLaw:
    """Fit the law to observed densities: least squares in log space, without the fall-off at the rare end.

    Ranks enter evenly spaced in log space, so that each octave counts the same. Features that never fire are left
    out. From the 64 most frequent on, the range of ranks is widened by quarter octaves, until those that would be
    added lie a quarter below the law fitted so far; the last quarter octave is then given up too.

    Args:
        densities: Densities of the features in any order, shape [d_sae].
        exponent: Hold the exponent at this value; None fits it.
        offset: Hold the offset at this value; None fits it.

    Returns:
        The law; of densities that follow one exactly, that one.

    Raises:
        ValueError: a density is negative or not finite, or fewer than 3 features fire.

    Example:
        >>> import torch
        >>> from sae_lens_afa.saes.zipf import fit_zipf
        >>> law = fit_zipf(0.3 * (torch.arange(1, 1001) + 4.0) ** -1.25)
        >>> round(law.exponent, 4), round(law.offset, 3)
        (1.25, 4.0)
    """
    if densities.ndim != 1 or not bool((densities >= 0).all() and densities.isfinite().all()):
        raise ValueError(f"densities must be finite numbers >= 0 of shape [d_sae], got {densities}.")
    ordered = densities.detach().cpu().double().sort(descending=True).values.numpy()
    n_firing = int((ordered > 0).sum())
    if n_firing < MIN_FEATURES:
        raise ValueError(
            f"a Zipf law needs at least {MIN_FEATURES} features that fire, {n_firing} of {len(ordered)} do:"
            " observe more tokens, or give the exponent and the offset."
        )
    ranks = np.unique(np.geomspace(1, n_firing, _POINTS).round())
    y = np.log(ordered[ranks.astype(np.int64) - 1])
    # An offset beyond the last rank would make of the law an exponential.
    offsets = _OFFSETS[n_firing >= _OFFSETS] if offset is None else np.array([float(offset)])
    last = min(float(_HEAD), float(n_firing))
    while last < n_firing:
        head, added = ranks <= last, (ranks > last) & (ranks <= last * _WIDENING)
        slope, level, error = _regress(np.log(ranks[head] + offsets[:, None]), y[head], exponent)
        best = int(error.argmin())
        expected = level[best] - slope[best] * np.log(ranks[added] + offsets[best])
        if np.median(y[added] - expected) < -np.log(_FALL_OFF):
            last = max(last / _WIDENING, float(_HEAD))  # its onset is in what was added last
            break
        last = min(last * _WIDENING, float(n_firing))
    head = ranks <= last
    return _fit(ranks[head], y[head], exponent, offsets)


def _fit(ranks: _Array, y: _Array, exponent: float | None, offsets: _Array) -> ZipfLaw:
    offset = offsets[0]
    if len(offsets) > 1:
        error = _regress(np.log(ranks + offsets[:, None]), y, exponent)[2]
        best = int(error.argmin())
        low, high = offsets[max(best - 1, 0)], offsets[min(best + 1, len(offsets) - 1)]
        offset = _minimise(lambda q: float(_regress(np.log(ranks + q), y, exponent)[2]), low, high)
    slope, level, error = (float(value) for value in _regress(np.log(ranks + offset), y, exponent))
    variance = float(np.square(y - y.mean()).sum())
    r_squared = 1 - error / variance if variance > 0 else 1.0
    return ZipfLaw(slope, float(offset), float(np.exp(min(level, _LOG_MAX))), r_squared, int(ranks[-1]))


def _regress(x: _Array, y: _Array, exponent: float | None) -> tuple[_Array, _Array, _Array]:
    """Fit y = level - slope * x over the last axis, slope >= 0 or given; return slope, level and squared error."""
    x_mean, dy = x.mean(-1, keepdims=True), y - y.mean()
    dx = x - x_mean
    if exponent is None:
        slope = np.maximum(-(dx * dy).sum(-1) / np.square(dx).sum(-1), 0.0)
    else:
        slope = np.full(x.shape[:-1], float(exponent))
    error = np.square(dy + slope[..., None] * dx).sum(-1)
    return slope, y.mean() + slope * x_mean[..., 0], error


def _minimise(error: Callable[[float], float], low: float, high: float) -> float:
    """Find the minimum that a function has between `low` and `high` by golden sections; `low` on a draw."""
    start, best_at_start = low, error(low)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = error(left), error(right)
    for _ in range(_SECTIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = error(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = error(right)
    return left if at_left < best_at_start else start


def expected_densities(law: ZipfLaw, d_sae: int, l0: float) -> Tensor:
    """Return the densities that the law expects of ranks 1 to `d_sae` if they sum to `l0` and none is above 1.

    Args:
        law: Its exponent and offset are used.
        d_sae: Number of features.
        l0: Mean number of features that fire on a token.

    Returns:
        float64 [d_sae], not increasing. What the cap at 1 takes from the first ranks goes to the others in
        proportion.

    Raises:
        ValueError: `l0` is not between 0 and `d_sae`.

    Example:
        >>> from sae_lens_afa.saes.zipf import ZipfLaw, expected_densities
        >>> [round(density, 4) for density in expected_densities(ZipfLaw(1.0), d_sae=3, l0=1.1).tolist()]
        [0.6, 0.3, 0.2]
    """
    if not 0 <= l0 <= d_sae:
        raise ValueError(f"l0 must be between 0 and d_sae = {d_sae}, got {l0}.")
    log_share = -law.exponent * np.log(np.arange(1, d_sae + 1) + law.offset)
    return torch.from_numpy(_scaled_to(np.exp(log_share - log_share[0]), l0, at_least=0.0, at_most=1.0))


def allocate_matches(densities: Tensor, n_matches: int, n_tokens: int, *, turn: int = 0) -> Tensor:
    """Return whole numbers of matches for each feature, in proportion to expected densities, that sum to `n_matches`.

    The quota of a feature is its share of the matches, but no more than `n_tokens` (a feature matches a token
    once), and no less than 1 if there are as many matches as features; the rest goes to the others in proportion.
    Quotas are rounded by largest remainder: down, and then up by 1 for those that lost most, the first of equals.

    With fewer matches than features no rounding can give each feature one. Features then take turns: each gets
    its quota rounded down or up, so that over successive turns it has its exact share, and none is left out
    for good.

    Args:
        densities: Expected densities of the features, shape [d_sae], positive.
        n_matches: Matches of the batch, M = round(k * n_tokens).
        n_tokens: Tokens of the batch.
        turn: Which batch this is; only matters with fewer matches than features.

    Returns:
        int64 [d_sae], from 0 to `n_tokens`.

    Raises:
        ValueError: no allocation sums to `n_matches`, because it is less than 1 or more than d_sae * n_tokens.

    Example:
        >>> import torch
        >>> from sae_lens_afa.saes.zipf import allocate_matches
        >>> allocate_matches(torch.tensor([0.6, 0.3, 0.2]), n_matches=11, n_tokens=10)
        tensor([6, 3, 2])
    """
    d_sae = len(densities)
    if not 1 <= n_matches <= d_sae * n_tokens:
        raise ValueError(
            f"a batch of {n_tokens} tokens cannot have {n_matches} matches: k * {n_tokens} must round to at least 1"
            f" and at most d_sae * {n_tokens} = {d_sae * n_tokens}. Change k, or take larger batches."
        )
    shares = densities.detach().cpu().double().numpy()
    if n_matches < d_sae:
        return torch.from_numpy(
            _by_turns(_scaled_to(shares, n_matches, at_least=0.0, at_most=n_tokens), n_matches, turn)
        )
    quota = _scaled_to(shares, n_matches, at_least=1.0, at_most=n_tokens)
    matches = np.floor(quota).astype(np.int64)
    by_remainder = np.argsort(matches - quota, kind="stable")
    matches[by_remainder[: n_matches - int(matches.sum())]] += 1
    return torch.from_numpy(matches)


def _by_turns(quota: _Array, total: int, turn: int) -> NDArray[np.int64]:
    """Round systematically: steps of the cumulative quota over whole numbers, shifted by another amount each turn."""
    cumulative = np.concatenate([[0.0], quota.cumsum()])
    cumulative[-1] = total
    return np.diff(np.floor(cumulative + (turn * _TURN) % 1).astype(np.int64))


def _scaled_to(shares: _Array, total: float, *, at_least: float, at_most: float) -> _Array:
    """Multiply `shares` by the one factor with which they sum to `total` once they are clipped to the bounds."""
    shares = shares.clip(min=_TINY)
    low, high = (at_least or total / shares.sum() * shares.max()) / shares.max(), at_most / shares.min()
    for _ in range(_HALVINGS):
        factor = np.sqrt(low) * np.sqrt(high)
        if (shares * factor).clip(at_least, at_most).sum() < total:
            low = factor
        else:
            high = factor
    return (shares * high).clip(at_least, at_most)
