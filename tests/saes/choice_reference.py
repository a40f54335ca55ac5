"""Mutual Choice, Feature Choice and their allocation as they read: loops over single entries, exact fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor


def _best(values: list[float], n_matches: int) -> list[int]:
    """Indices of the largest positive values, the lowest index first among equals."""
    return sorted((i for i, value in enumerate(values) if value > 0), key=lambda i: (-values[i], i))[:n_matches]


def mutual_choice(acts: Tensor, n_matches: int) -> Tensor:
    """All but the `n_matches` largest positive entries zeroed."""
    flat = acts.reshape(-1)
    out = torch.zeros_like(flat)
    for i in _best(flat.tolist(), n_matches):
        out[i] = flat[i]
    return out.reshape(acts.shape)


def feature_choice(acts: Tensor, n_matches: Sequence[int]) -> Tensor:
    """All but each column's largest positive entries zeroed."""
    rows = acts.reshape(-1, acts.shape[-1])
    out = torch.zeros_like(rows)
    for feature, most in enumerate(n_matches):
        for token in _best(rows[:, feature].tolist(), most):
            out[token, feature] = rows[token, feature]
    return out.reshape(acts.shape)


def quotas(shares: Sequence[Fraction], total: int, low: int, high: int) -> list[Fraction]:
    """Shares of `total` in proportion, those out of bounds set to their bound one after the other."""
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(shares)) if i not in fixed]
        weight = sum((shares[i] for i in free), Fraction(0))
        left = total - sum(fixed.values())
        quota = {i: left * shares[i] / weight for i in free}
        over = {i: high for i in free if quota[i] > high}
        under = {i: low for i in free if quota[i] < low}
        # What is taken from one end changes the other: fix the end on which more is out of bounds.
        excess = sum((quota[i] - high for i in over), Fraction(0))
        lack = sum((low - quota[i] for i in under), Fraction(0))
        if not over and not under:
            return [Fraction(fixed[i]) if i in fixed else quota[i] for i in range(len(shares))]
        fixed |= over if excess >= lack else under


def allocate_matches(shares: Sequence[Fraction], total: int, n_tokens: int) -> list[int]:
    """Largest remainder with at least 1 and at most `n_tokens` each; the first of equal remainders first."""
    quota = quotas(shares, total, 1, n_tokens)
    matches = [math.floor(q) for q in quota]
    order = sorted(range(len(quota)), key=lambda i: (matches[i] - quota[i], i))
    for i in order[: total - sum(matches)]:
        matches[i] += 1
    return matches


def aux_zipf_loss(under_used: Tensor, hidden_pre: Tensor, residual: Tensor, W_dec: Tensor, k_aux: int) -> float:
    """Squared error of the residual's reconstruction by the largest k_aux under-used features."""
    candidates = under_used.nonzero().squeeze(-1).tolist()
    total = 0.0
    for token, acts in enumerate(hidden_pre):
        best = sorted(candidates, key=lambda i: -acts[i].item())[:k_aux]
        recons = sum((acts[i] * W_dec[i] for i in best), torch.zeros_like(residual[token]))
        total += (recons - residual[token]).square().sum().item()
    return min(len(candidates) / k_aux, 1) * total / len(hidden_pre)
