"""The Zipf law: fitted, expected densities, and whole matches."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import choice_reference as reference
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sae_lens_afa.saes.zipf import ZipfLaw, allocate_matches, expected_densities, fit_zipf

EXPONENTS, OFFSETS = st.floats(0.3, 2.5), st.floats(0, 50)


def densities(n: int, exponent: float, offset: float, scale: float = 0.3) -> torch.Tensor:
    return scale * (torch.arange(1, n + 1, dtype=torch.float64) + offset) ** -exponent


# ---- fit


@given(st.integers(50, 5000), EXPONENTS, OFFSETS, st.floats(0.01, 1), st.integers(0, 9))
def test_an_exact_law_is_recovered_in_any_order(n, exponent, offset, scale, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    law = fit_zipf(densities(n, exponent, offset, scale)[order])
    assert law.exponent == pytest.approx(exponent, rel=1e-5)
    assert law.offset == pytest.approx(offset, rel=1e-4, abs=1e-4)
    assert law.scale == pytest.approx(scale, rel=1e-4)
    assert law.r_squared == pytest.approx(1)
    assert law.last_rank == n


@given(
    st.integers(2000, 8000), st.floats(0.5, 2), st.floats(0, 20), st.floats(0.4, 0.9), st.sampled_from(["dead", "exp"])
)
def test_a_fall_off_at_the_rare_end_does_not_count(n, exponent, offset, where, kind):
    observed = densities(n, exponent, offset)
    tail = torch.arange(n - int(where * n))
    observed[int(where * n) :] *= 0 if kind == "dead" else torch.exp(-(1 + tail) / len(tail) * 8)
    law = fit_zipf(observed)
    assert law.exponent == pytest.approx(exponent, rel=0.02)
    assert law.offset == pytest.approx(offset, rel=0.05, abs=0.1)
    assert law.last_rank <= 1.1 * where * n
    assert law.r_squared > 0.999


def test_the_fit_bears_sampling_noise():
    law = fit_zipf(torch.poisson(densities(4000, 1.0, 3.0) * 1e6) / 1e6)
    assert law.exponent == pytest.approx(1.0, abs=0.02)
    assert law.offset == pytest.approx(3.0, abs=0.5)


@given(EXPONENTS, OFFSETS)
def test_what_is_given_is_held(exponent, offset):
    observed = densities(500, exponent, offset)
    held = fit_zipf(observed, exponent=exponent)
    assert (held.exponent, held.offset) == (exponent, pytest.approx(offset, rel=1e-4, abs=1e-4))
    held = fit_zipf(observed, offset=offset)
    assert (held.exponent, held.offset) == (pytest.approx(exponent, rel=1e-6), offset)
    both = fit_zipf(observed, exponent=3.0, offset=7.0)
    assert (both.exponent, both.offset) == (3.0, 7.0)
    assert both.r_squared < 1


def test_equal_densities_have_exponent_zero():
    law = fit_zipf(torch.full((100,), 0.02))
    assert law.exponent == pytest.approx(0, abs=1e-12)
    assert law.scale == pytest.approx(0.02)


def test_three_features_are_enough_and_two_are_not():
    assert fit_zipf(torch.tensor([0.5, 0.0, 0.1, 0.2])).last_rank == 3
    with pytest.raises(ValueError, match=r"at least 3 features that fire, 2 of 4 do"):
        fit_zipf(torch.tensor([0.5, 0.0, 0.0, 0.2]))


@pytest.mark.parametrize("bad", [[0.1, -0.1, 0.2], [0.1, torch.nan, 0.2], [[0.1, 0.2, 0.3]], [torch.inf, 1.0, 1.0]])
def test_what_are_no_densities_is_refused(bad):
    with pytest.raises(ValueError, match=r"finite numbers >= 0 of shape \[d_sae\]"):
        fit_zipf(torch.tensor(bad))


# ---- expected densities


@given(st.integers(1, 300), st.floats(0, 6), OFFSETS, st.floats(1e-3, 1))
def test_expected_densities_sum_to_l0_fall_with_rank_and_stay_below_one(n, exponent, offset, share):
    expected = expected_densities(ZipfLaw(exponent, offset), n, share * n)
    assert float(expected.sum()) == pytest.approx(share * n, rel=1e-9)
    assert (expected.diff() <= 0).all()
    assert expected.max() <= 1
    free = expected < 1
    law = densities(n, exponent, offset)[free]
    torch.testing.assert_close(expected[free] / expected[free].sum(), law / law.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("l0", [-1, 11, float("nan")])
def test_an_impossible_l0_is_refused(l0):
    with pytest.raises(ValueError, match="between 0 and d_sae = 10"):
        expected_densities(ZipfLaw(1.0), 10, l0)


# ---- matches


@st.composite
def allocations(draw: st.DrawFn) -> tuple[list[Fraction], int, int]:
    """Shares that floats hold exactly, the total and the tokens of a batch with at least a match for each feature."""
    shares = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
    n_tokens = draw(st.integers(1, 40))
    total = draw(st.integers(len(shares), len(shares) * n_tokens))
    return [Fraction(s) for s in shares], total, n_tokens


@given(allocations())
def test_matches_are_by_largest_remainder_with_at_least_one_each(allocation):
    shares, total, n_tokens = allocation
    quota = reference.quotas(shares, total, 1, n_tokens)
    remainders = sorted(q - int(q) for q in quota)
    # Where two remainders agree in exact arithmetic, float64 may see either as larger.
    exact = all(b - a > Fraction(1, 10**9) or b == a for a, b in pairwise(remainders))
    found = allocate_matches(torch.tensor([float(s) for s in shares]), total, n_tokens).tolist()
    assert sum(found) == total
    assert all(1 <= m <= n_tokens and abs(m - q) < 1 + 1e-9 for m, q in zip(found, quota, strict=True))
    if exact and len(set(remainders)) == len(remainders):
        assert found == reference.allocate_matches(shares, total, n_tokens)


@given(allocations())
def test_more_frequent_features_never_have_fewer_matches(allocation):
    shares, total, n_tokens = allocation
    found = allocate_matches(torch.tensor(sorted(map(float, shares), reverse=True)), total, n_tokens)
    assert (found.diff() <= 0).all()


def test_equal_shares_give_the_rest_to_the_first():
    assert allocate_matches(torch.ones(4), 10, 8).tolist() == [3, 3, 2, 2]
    assert allocate_matches(torch.ones(4), 12, 8).tolist() == [3, 3, 3, 3]


def test_a_very_steep_law_is_bounded_on_both_sides():
    matches = allocate_matches(expected_densities(ZipfLaw(400.0), 100, 2.0), 200, 100)
    # Two densities are 1, the others next to nothing.
    assert matches.tolist() == [51, 51] + [1] * 98
    assert allocate_matches(torch.tensor([1.0, 1e-30, 1e-30]), 14, 10).tolist() == [10, 2, 2]


@settings(max_examples=30)
@given(st.integers(2, 200), st.data(), st.floats(0, 2))
def test_a_batch_with_fewer_matches_than_features_gives_turns(n, data, exponent):
    total = data.draw(st.integers(1, n - 1))
    n_tokens = data.draw(st.integers(1, 50))
    assume(total <= n * n_tokens)
    expected = expected_densities(ZipfLaw(exponent), n, min(n, total / n_tokens))
    quota = torch.from_numpy(_quota(expected, total, n_tokens))
    turns = torch.stack([allocate_matches(expected, total, n_tokens, turn=turn) for turn in range(144)])
    assert (turns.sum(1) == total).all()
    assert ((turns >= quota.floor() - 1e-9) & (turns <= quota.ceil() + 1e-9)).all()
    # A feature's share of the turns is its quota within the sequence's discrepancy, 2 / 144 at a Fibonacci number.
    assert ((turns.double().mean(0) - quota).abs() < 0.03).all()


def _quota(expected, total, n_tokens):
    from sae_lens_afa.saes.zipf import _scaled_to

    return _scaled_to(expected.numpy(), total, at_least=0.0, at_most=n_tokens)


@pytest.mark.parametrize(("total", "n_tokens"), [(0, 5), (-1, 5), (21, 5)])
def test_a_total_that_cannot_be_allocated_says_why(total, n_tokens):
    with pytest.raises(ValueError, match=rf"a batch of 5 tokens cannot have {total} matches.*at most.*= 20\."):
        allocate_matches(torch.ones(4), total, n_tokens)
