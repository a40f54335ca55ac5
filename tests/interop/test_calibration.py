"""Thresholds from counts against a search over every candidate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_afa.interop._calibration import ThresholdCalibration

D_SAE = 7


def calibrate(pre: Tensor, selected: Tensor, *, batches: int = 1) -> ThresholdCalibration:
    calibration = ThresholdCalibration(pre.shape[1])
    for part in zip(pre.chunk(batches), selected.chunk(batches), strict=True):
        calibration.add(*part)
    return calibration


def thresholds(pre: Tensor, selected: Tensor, *, batches: int = 1) -> Tensor:
    return calibrate(pre, selected, batches=batches).thresholds(torch.ones(pre.shape[1]))


def disagreements(pre: Tensor, selected: Tensor, threshold: Tensor) -> Tensor:
    return ((pre > threshold) != selected).sum(0)


def noisy_selection(seed: int, tokens: int = 300) -> tuple[Tensor, Tensor]:
    """Pre-activations of mixed sizes, selected the more often the larger they are; never where not positive."""
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(tokens, D_SAE, generator=generator) * 2.0 ** torch.arange(-3, D_SAE - 3)
    noise = torch.randn(pre.shape, generator=generator) * pre.std(0) * 0.3
    return pre, (pre > 0) & (pre + noise > 0.8 * pre.std(0))


def edges() -> list[float]:
    """Numbers of four binary digits after the first, written out."""
    return [0.0, *(math.ldexp(1 + j / 16, e) for e in range(-30, 30) for j in range(16))]


@pytest.mark.parametrize("seed", range(5))
def test_no_bin_edge_is_better(seed):
    pre, selected = noisy_selection(seed)
    found = disagreements(pre, selected, thresholds(pre, selected))
    best = torch.stack([disagreements(pre, selected, torch.full((D_SAE,), edge)) for edge in edges()]).amin(0)
    assert torch.equal(found, best)
    # Between the nearest edges lie a few tokens of each feature at most.
    exact = torch.stack([disagreements(pre, selected, value) for value in torch.cat([pre, torch.zeros(1, D_SAE)])])
    assert (found - exact.amin(0) <= 6).all()


@pytest.mark.parametrize("seed", range(5))
def test_with_one_value_a_bin_no_threshold_at_all_is_better(seed):
    pre, selected = noisy_selection(seed)
    pre = torch.where(pre > 0, 2 ** (torch.log2(pre.abs()) * 8).round().div(8), pre)
    candidates = torch.cat([pre, torch.zeros(1, D_SAE)])
    best = torch.stack([disagreements(pre, selected, value) for value in candidates]).amin(0)
    assert torch.equal(disagreements(pre, selected, thresholds(pre, selected)), best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_selection_by_thresholds_is_found_again(dtype):
    pre = torch.randn(2000, D_SAE).to(dtype)
    rule = torch.linspace(0, 1.5, D_SAE).to(dtype)
    selected = pre > rule
    found = thresholds(pre, selected)
    assert found.dtype == dtype
    assert found[0] == 0
    assert torch.equal(pre > found, selected)


def test_neighbours_on_a_coarse_grid_are_told_apart():
    low, high = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)  # nothing is between them
    for pair in ((low, high), (high, high.float().mul(1.0078125).bfloat16())):
        pre = torch.stack(pair)[:, None]
        found = thresholds(pre, torch.tensor([[False], [True]]))
        assert (pre > found).flatten().tolist() == [False, True]


def test_features_that_are_never_selected_stay_off_where_they_were_seen():
    pre, selected = noisy_selection(0)
    pre[:, 2] = -pre[:, 2].abs()  # never positive
    selected[:, 2] = selected[:, 3] = False
    norm = torch.linspace(0.5, 2, D_SAE)
    calibration = calibrate(pre, selected)
    found = calibration.thresholds(norm)
    assert calibration.never_selected().tolist() == [False, False, True, True, False, False, False]
    others = [i for i in range(D_SAE) if i not in (2, 3)]
    usual = float((found * norm)[others].median())
    assert found[2] == pytest.approx(usual / float(norm[2]))
    assert found[3] == pytest.approx(max(usual / float(norm[3]), float(pre[:, 3].max())))


def test_without_any_selection_every_feature_is_off():
    pre = torch.randn(50, D_SAE)
    found = thresholds(pre, torch.zeros_like(pre, dtype=torch.bool))
    assert not (pre > found).any()
    negative = thresholds(-pre.abs(), torch.zeros_like(pre, dtype=torch.bool))
    assert (negative == 0).all()


@pytest.mark.parametrize("scale", [2.0**125, 2.0**-140])
def test_at_the_ends_of_float32_thresholds_stay_in_it(scale):
    pre, selected = noisy_selection(0)
    pre = (pre / pre.abs().max()) * scale
    found = thresholds(pre, selected)
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert (disagreements(pre, selected, found) <= selected.sum(0)).all()


def test_a_decoder_row_of_zero_gives_a_finite_threshold():
    pre, selected = noisy_selection(0)
    selected[:, 0] = False
    found = calibrate(pre, selected).thresholds(torch.tensor([0.0, *[1.0] * (D_SAE - 1)]))
    assert found.isfinite().all()
    assert found[0] == pre[:, 0].max()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(-12, 12))
def test_batches_order_and_scale_make_no_difference(seed, batches, exponent):
    pre, selected = noisy_selection(seed)
    whole = thresholds(pre, selected)
    assert (whole >= 0).all()
    assert whole.isfinite().all()
    assert torch.equal(thresholds(pre, selected, batches=batches), whole)
    assert torch.equal(thresholds(pre.flip(0), selected.flip(0), batches=batches), whole)
    assert torch.equal(thresholds(pre.flip(1), selected.flip(1)), whole.flip(0))
    assert torch.equal(thresholds(pre * 2.0**exponent, selected), whole * 2.0**exponent)


@given(st.integers(0, 2**31))
def test_no_feature_does_worse_than_always_on_or_always_off(seed):
    pre, selected = noisy_selection(seed, tokens=64)
    found = disagreements(pre, selected, thresholds(pre, selected))
    never = selected.sum(0)
    always = ((pre > 0) & ~selected).sum(0)
    assert (found <= torch.minimum(never, always)).all()


def test_a_selection_that_grows_beyond_the_first_batch_is_still_separated():
    # Values far above and below those that came first share the outermost bins.
    pre = torch.tensor([[1.0], [2.0], [2.0**-30], [2.0**40]])
    selected = torch.tensor([[False], [True], [False], [True]])
    assert torch.equal(pre > thresholds(pre, selected, batches=4), selected)
