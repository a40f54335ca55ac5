"""The AFA formulas against their definitions."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_afa.functional import (
    afa_loss,
    coherence,
    epsilon_lbo,
    feature_norm,
    sparsity_loss,
    universal_threshold,
)


def test_feature_norm_scales_by_decoder_rows_and_counts_the_bias_as_a_feature():
    acts = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    W_dec = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.5]])
    b_dec = torch.tensor([0.0, 2.0, 0.0])
    assert feature_norm(acts, W_dec).tolist() == pytest.approx([26**0.5, 0.0])
    assert feature_norm(acts, W_dec, b_dec).tolist() == pytest.approx([30**0.5, 2.0])


def test_feature_norm_does_not_depend_on_how_scale_is_split():
    acts, W_dec, scale = torch.rand(5, 7), torch.randn(7, 3), torch.rand(7) + 0.5
    torch.testing.assert_close(feature_norm(acts * scale, W_dec / scale[:, None]), feature_norm(acts, W_dec))


def test_afa_loss_is_the_mean_squared_difference_of_norms():
    acts, x = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]])
    assert afa_loss(acts, x).item() == pytest.approx((2**2 + 1) / 2)


def test_afa_loss_has_a_zero_gradient_at_a_zero_code():
    acts = torch.zeros(2, 3, requires_grad=True)
    afa_loss(acts, torch.ones(2, 4)).backward()
    assert acts.grad.tolist() == [[0.0] * 3] * 2


def test_afa_loss_passes_gradcheck():
    acts = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: afa_loss(a, torch.ones(4, 3, dtype=torch.float64)), acts)


def test_afa_loss_accumulates_low_precision_in_float32():
    acts = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    expected = (acts.double().norm() - 1) ** 2
    assert afa_loss(acts, torch.ones(1, 1, dtype=torch.bfloat16)).item() == pytest.approx(expected.item(), rel=1e-5)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(2, 10**6))
def test_epsilon_lbo_is_its_definition(dense, feature, d_sae):
    z, f = torch.tensor(dense, dtype=torch.float64), torch.tensor(feature, dtype=torch.float64)
    expected = abs(dense**2 - feature**2) / ((d_sae - 1) * feature**2)
    # The difference of squares cancels where the norms are close: its own error is 1e-16 of the squares.
    assert epsilon_lbo(z, f, d_sae).item() == pytest.approx(expected, rel=1e-9, abs=1e-14 / (d_sae - 1))


def test_epsilon_lbo_is_a_lower_bound_on_the_coherence():
    W_dec = torch.nn.functional.normalize(torch.randn(12, 40, dtype=torch.float64), dim=-1)
    acts = torch.rand(50, 12, dtype=torch.float64)
    bound = epsilon_lbo((acts @ W_dec).norm(dim=-1), feature_norm(acts, W_dec), 12)
    assert bound.max() <= coherence(W_dec).max + 1e-12


def test_epsilon_lbo_survives_norms_whose_squares_overflow():
    assert epsilon_lbo(torch.tensor(2e30), torch.tensor(1e30), 4).item() == pytest.approx(1.0)


def test_epsilon_lbo_is_undefined_without_features_or_without_pairs():
    assert epsilon_lbo(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), 2)[0].isnan()
    assert epsilon_lbo(torch.tensor([1.0]), torch.tensor([1.0]), 1).isnan().all()


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 40))
def test_coherence_is_that_of_the_whole_matrix_whatever_the_blocks(d_sae, d_in, block_size):
    W_dec = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(d_sae * d_in))
    W_dec[::5] = 0
    unit = torch.nn.functional.normalize(W_dec, dim=-1)
    overlaps = (unit @ unit.T).abs().fill_diagonal_(0)
    found = coherence(W_dec, block_size=block_size)
    if d_sae == 1:
        assert math.isnan(found.max)
        assert math.isnan(found.mean)
    else:
        # float32 products of d_in <= 7 terms: an error of some 1e-7.
        assert found.max == pytest.approx(overlaps.max().item(), abs=1e-6)
        assert found.mean == pytest.approx(overlaps.sum().item() / (d_sae * (d_sae - 1)), abs=1e-6)


@pytest.mark.slow
def test_coherence_of_a_large_dictionary_fits_in_memory():
    code = (
        "import resource, torch; from sae_lens_afa.functional import coherence\n"
        "torch.set_num_threads(1); W = torch.randn(65536, 4); coherence(W[:3000])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "coherence(W)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    # The goal is 200 MB; a block and its parts take a fraction of that.
    assert int(done.stdout) < 100e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_norm(torch.ones(2, 3), torch.ones(4, 5)), r"feature_acts.*d_sae = 4.*\[2, 3\]"),
        (lambda: feature_norm(torch.ones(2, 4), torch.ones(4, 5), torch.ones(4)), r"b_dec.*d_in = 5"),
        (lambda: feature_norm(torch.ones(4), torch.ones(4)), "W_dec must be a matrix"),
        (lambda: afa_loss(torch.ones(2, 3), torch.ones(3, 3)), "agree in all axes but the last"),
        (lambda: epsilon_lbo(torch.ones(2), torch.ones(3), 4), "one shape"),
        (lambda: epsilon_lbo(torch.ones(2), torch.ones(2), 0), "d_sae must be at least 1"),
        (lambda: coherence(torch.ones(3)), "W_dec must be a matrix"),
        (lambda: coherence(torch.ones(3, 3), block_size=0), "block_size must be at least 1"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_the_afa_loss_is_that_of_autograd(dtype):
    acts = torch.randn(4, 30).relu().to(dtype)
    acts[2] = 0
    x = torch.randn(4, 5).to(dtype)
    found, expected = acts.clone().requires_grad_(), acts.clone().requires_grad_()
    afa_loss(found, x).backward()
    norms = [torch.linalg.vector_norm(t.to(torch.promote_types(dtype, torch.float32)), dim=-1) for t in (expected, x)]
    (norms[0] - norms[1]).square().mean().backward()
    torch.testing.assert_close(found.grad, expected.grad)
    assert (found.grad[2] == 0).all()


def test_the_afa_loss_can_be_differentiated_twice():
    acts = torch.rand(3, 7, dtype=torch.float64, requires_grad=True)
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(afa_loss, (acts, x))
    assert torch.autograd.gradgradcheck(afa_loss, (acts, x))


# ---- the threshold above which a feature cannot be interference


@given(st.integers(1, 40), st.integers(1, 10**6), st.floats(0, 3), st.integers(0, 2**31))
def test_universal_threshold_is_its_definition(d_in, d_sae, scale, seed):
    x = torch.randn(2, 3, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = universal_threshold(x.norm(dim=-1), d_in, d_sae, scale)
    # Norms summed in another order, in float64.
    torch.testing.assert_close(found, reference.universal_threshold(x, d_sae, scale), rtol=1e-13, atol=1e-14)
    as_tensor = torch.tensor(scale, dtype=torch.float64)
    assert torch.equal(universal_threshold(x.norm(dim=-1), d_in, d_sae, as_tensor), found)


def test_interference_of_all_other_directions_stays_below_it():
    # What it is derived from: of random directions the largest overlap is about the threshold, most often below it.
    d_in, d_sae, n_tokens = 256, 4096, 64
    directions = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=-1)
    x = torch.randn(n_tokens, d_in)
    largest = (x @ directions.T).amax(-1) / universal_threshold(x.norm(dim=-1), d_in, d_sae)
    assert 0.85 < largest.mean() < 1
    assert largest.max() < 1.3


def test_universal_threshold_keeps_the_dtype_and_names_what_is_wrong():
    assert universal_threshold(torch.ones(2, dtype=torch.bfloat16), 4, 8).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"dense_norm must be a floating-point tensor, got dtype torch\.int64"):
        universal_threshold(torch.ones(2, dtype=torch.int64), 4, 8)
    for arguments, message in (
        ((0, 8), "d_in must be at least 1, got 0"),
        ((4, 0), "d_sae must be at least 1, got 0"),
        ((4, 8, -1.0), "scale must be a finite number >= 0, got -1.0"),
        ((4, 8, math.inf), "scale must be a finite number >= 0, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            universal_threshold(torch.ones(2), *arguments)


# ---- the loss on spread


def codes(*leading: int, d_sae: int = 30) -> torch.Tensor:
    return torch.rand(*leading, d_sae, dtype=torch.float64) * (torch.rand(*leading, d_sae) < 0.3)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_sparsity_loss_is_its_definition(shape):
    acts, W_dec, x = codes(*shape), torch.randn(30, 7, dtype=torch.float64), torch.randn(*shape, 7).double()
    if shape == (5,):
        acts[2] = 0
    spread, power = [], []
    for f, z in zip(acts.reshape(-1, 30), x.reshape(-1, 7), strict=True):
        scaled = [a.item() * W_dec[i].norm().item() for i, a in enumerate(f)]
        square = sum(s * s for s in scaled)
        spread.append(sum(scaled) ** 2 / square if square > 0 else 0)
        power.append(z.square().sum().item())
    expected = sum(spread) / len(spread) / 7 * sum(power) / len(power) / 7
    assert sparsity_loss(acts, W_dec, x).item() == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 30))
def test_of_equal_features_it_counts_how_many(n):
    acts = torch.zeros(4, 30)
    acts[:, :n] = 0.7
    W_dec = torch.nn.functional.normalize(torch.randn(30, 16), dim=-1)
    x = torch.ones(4, 16)
    assert sparsity_loss(acts, W_dec, x).item() == pytest.approx(n / 16, rel=1e-5)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_it_scales_as_an_mse_and_not_with_the_norm_of_the_code(of_x, of_acts):
    torch.manual_seed(0)
    acts, W_dec, x = codes(6), torch.randn(30, 7, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64)
    loss = sparsity_loss(acts, W_dec, x)
    torch.testing.assert_close(sparsity_loss(of_acts * acts, W_dec, of_x * x), of_x**2 * loss)
    torch.testing.assert_close(sparsity_loss(acts * of_acts, W_dec / of_acts, x), loss)


@given(st.integers(1, 5))
def test_it_depends_neither_on_the_batch_size_nor_at_equal_shares_on_the_dimension(times):
    torch.manual_seed(0)
    acts, W_dec, x = codes(6), torch.randn(30, 7, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64)
    W_dec = torch.nn.functional.normalize(W_dec, dim=-1)
    loss = sparsity_loss(acts, W_dec, x)
    torch.testing.assert_close(sparsity_loss(acts.repeat(times, 1), W_dec, x.repeat(times, 1)), loss)
    # The same code `times` over in blocks of their own: as many times the features, and the dimension.
    blocks = torch.block_diag(*[W_dec] * times)
    torch.testing.assert_close(sparsity_loss(acts.repeat(1, times), blocks, x.repeat(1, times)), loss)


def test_sparsity_loss_passes_gradcheck_and_has_no_gradient_at_an_empty_code_or_in_x():
    acts = (codes(4) + 0.01).requires_grad_()
    W_dec, x = torch.randn(30, 7, dtype=torch.float64, requires_grad=True), torch.randn(4, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, w: sparsity_loss(a, w, x), (acts, W_dec))
    empty, x = torch.zeros(4, 30, dtype=torch.float64, requires_grad=True), x.requires_grad_()
    loss = sparsity_loss(empty, W_dec, x)
    loss.backward()
    assert loss == 0
    assert not empty.grad.any()
    assert x.grad is None


def test_sparsity_loss_sums_low_precision_in_float32():
    acts, W_dec, x = torch.full((1, 4096), 0.1).bfloat16(), torch.ones(4096, 1), torch.ones(1, 1)
    assert sparsity_loss(acts, W_dec, x).item() == pytest.approx(4096, rel=1e-4)


@pytest.mark.parametrize(
    ("acts", "W_dec", "x", "message"),
    [
        (torch.ones(2, 3), torch.ones(3), torch.ones(2, 4), "W_dec must be a matrix"),
        (torch.ones(2, 5), torch.ones(3, 4), torch.ones(2, 4), "feature_acts: the last axis must be d_sae = 3"),
        (torch.ones(2, 3), torch.ones(3, 4), torch.ones(2, 5), "x_centered: the last axis must be d_in = 4"),
        (
            torch.ones(2, 3),
            torch.ones(3, 4),
            torch.ones(1, 4),
            r"agree in all axes but the last.*\[2, 3\] and \[1, 4\]",
        ),
    ],
)
def test_sparsity_loss_names_the_axis_that_does_not_fit(acts, W_dec, x, message):
    with pytest.raises(ValueError, match=message):
        sparsity_loss(acts, W_dec, x)
