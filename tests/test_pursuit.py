"""Pursuit by stages on tensors: the literal rule, its back ends, its gradient, and what it promises of any input."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_afa.functional import universal_ratio
from sae_lens_afa.selection import PursuitRule, available_backends, fit_gradients, pursue

BACKENDS = pytest.mark.parametrize("backend", ["numba", "torch"])
# Triton's kernels: on a GPU where there is one, else slowly in Triton's interpreter.
GPU = pytest.mark.skipif("triton" not in available_backends(), reason="Triton is not installed")
RULE = PursuitRule(threshold=0.5, floor=0.1, weak=0.7, max_stages=20)


def codes_of(x: Tensor, W_dec: Tensor, rule: PursuitRule = RULE, typical: float = 0.0, backend: str = "auto") -> Tensor:
    return pursue(x, W_dec, x @ W_dec.T, rule, x.new_tensor(typical), backend=backend)


def on_gpu(x: Tensor, W_dec: Tensor, rule: PursuitRule, typical: float = 0.0) -> Tensor:
    """The codes in single precision by Triton's kernels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return codes_of(x.float().to(device), W_dec.float().to(device), rule, typical, "triton").cpu().double()


def literally(x: Tensor, W_dec: Tensor, rule: PursuitRule, typical: float = 0.0) -> Tensor:
    return torch.stack([reference.pursue(token, W_dec, *rule, typical) for token in x])


def random_case(seed: int, tokens: int, d_in: int, d_sae: int) -> tuple[Tensor, Tensor]:
    """Tokens and rows of any norm; one row is zero."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    W_dec *= 0.5 + torch.rand(d_sae, 1, generator=generator, dtype=torch.float64)
    W_dec[d_sae // 2] = 0
    return torch.randn(tokens, d_in, generator=generator, dtype=torch.float64), W_dec


# Ties and near-ties, which rounding could turn, do not occur in these: sizes and seeds are drawn, values are normal.
@BACKENDS
@given(
    seed=st.integers(0, 10_000),
    d_in=st.integers(6, 24),
    d_sae=st.integers(2, 64),
    scale=st.floats(0.4, 1.5),
    floor=st.floats(0, 0.6),
    weak=st.floats(0.3, 1.0),
    max_stages=st.integers(1, 12),
    typical=st.floats(0, 8),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_literal_rule(backend, seed, d_in, d_sae, scale, floor, weak, max_stages, typical):
    x, W_dec = random_case(seed, 5, d_in, d_sae)
    rule = PursuitRule(universal_ratio(d_in, d_sae, scale), floor, weak, max_stages)
    found = codes_of(x, W_dec, rule, typical, backend)
    try:
        expected = literally(x, W_dec, rule, typical)
    except torch.linalg.LinAlgError:
        reject()
    # In float64 the fits are precise to 1e-11 of the token; what they reach is compared, because the values of nearly
    # dependent rows are not determined as well as that.
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found @ W_dec, expected @ W_dec, rtol=1e-7, atol=1e-7)


@BACKENDS
def test_single_precision_finds_the_same_features(backend):
    x, W_dec = random_case(0, 300, 64, 512)
    rule = PursuitRule(universal_ratio(64, 512, 0.6), 0.1, 0.7, 32)
    exact = codes_of(x, W_dec, rule, backend="torch")
    found = codes_of(x.float(), W_dec.float(), rule, backend=backend)
    # Fits are precise to 1e-5 of the token, so what is as near to its threshold may fall on either side, and what comes
    # after it differs: seen on 1 % of these tokens, of dozens of decisions each.
    same = ((found > 0) == (exact > 0)).all(-1)
    assert same.double().mean() > 0.97
    torch.testing.assert_close(found[same].double() @ W_dec, exact[same] @ W_dec, rtol=1e-3, atol=1e-3)
    assert (exact > 0).sum(-1).double().mean() > 4


@GPU
@pytest.mark.parametrize(
    ("tokens", "d_in", "d_sae", "scale", "weak", "max_stages", "at_least"),
    [
        (12, 64, 512, 0.6, 0.7, 32, 16),
        (12, 96, 700, 0.8, 0.9, 32, 2),
        (6, 33, 90, 0.6, 1.0, 3, 2),
        (6, 64, 300, 0.05, 0.9, 2, 16),  # lists that no kernel has room for
    ],
)
def test_the_gpu_kernels_find_the_features_of_the_rule_in_double_precision(
    tokens, d_in, d_sae, scale, weak, max_stages, at_least
):
    x, W_dec = random_case(0, tokens, d_in, d_sae)
    x[0], x[1, 0], x[2] = 0, math.nan, 1e-6 * x[2]
    rule = PursuitRule(universal_ratio(d_in, d_sae, scale), 0.1, weak, max_stages)
    found, exact = on_gpu(x, W_dec, rule, 1e-6), codes_of(x, W_dec, rule, 1e-6, backend="torch")
    assert found[1].isnan().all()
    assert (found[0] == 0).all()
    same = ((found > 0) == (exact > 0)).all(-1)
    same[1] = False
    # As above: a decision in hundreds is so near that rounding turns it; most tokens here take a dozen.
    assert same.sum() >= tokens - 2
    torch.testing.assert_close(found[same] @ W_dec, exact[same] @ W_dec, rtol=1e-3, atol=1e-3)
    assert (exact[same] > 0).sum(-1).max() >= at_least


@GPU
def test_a_rule_too_fine_for_the_gpu_kernels_is_followed_by_torch():
    x, W_dec = random_case(5, 4, 24, 60)
    rule = RULE._replace(floor=0.01)
    assert torch.equal(on_gpu(x, W_dec, rule), codes_of(x.float(), W_dec.float(), rule, backend="torch").double())


@BACKENDS
def test_the_features_of_a_sparse_token_are_found_with_their_values(backend):
    W_dec = torch.nn.functional.normalize(torch.randn(400, 256), dim=1)
    truth = torch.zeros(40, 400)
    for row in truth:
        row[torch.randperm(400)[:6]] = 1 + torch.rand(6)
    x = truth @ W_dec
    found = codes_of(x, W_dec, PursuitRule(universal_ratio(256, 400), 0.1, 0.7, 32), backend=backend)
    assert ((found > 0) == (truth > 0)).all(-1).float().mean() > 0.9
    right = ((found > 0) == (truth > 0)).all(-1)
    torch.testing.assert_close(found[right], truth[right], rtol=1e-3, atol=1e-3)


@BACKENDS
@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
def test_codes_scale_with_tokens(backend, factor):
    x, W_dec = random_case(1, 20, 16, 80)
    torch.testing.assert_close(
        codes_of(factor * x, W_dec, typical=factor, backend=backend), factor * codes_of(x, W_dec, typical=1.0)
    )


@BACKENDS
def test_a_code_is_the_least_squares_fit_of_its_features_and_not_negative(backend):
    x, W_dec = random_case(2, 50, 24, 100)
    found = codes_of(x, W_dec, backend=backend)
    along = (x - found @ W_dec) @ W_dec.T
    assert (found >= 0).all()
    assert along[found > 0].abs().max() < 1e-8
    assert (found > 0).any(-1).float().mean() > 0.2


@BACKENDS
def test_it_goes_on_until_nothing_stands_out(backend):
    x, W_dec = random_case(3, 50, 24, 100)
    found = codes_of(x, W_dec, RULE._replace(max_stages=1000), backend=backend)
    rest = x - found @ W_dec
    along = (rest @ W_dec.T / W_dec.norm(dim=1).clamp(min=1e-300)).masked_fill(found > 0, 0)
    least = RULE.threshold * torch.maximum(rest.norm(dim=1), RULE.floor * x.norm(dim=1))
    assert (along.amax(1) <= least + 1e-9).all()


@BACKENDS
def test_stages_are_counted_and_each_lowers_the_residual(backend):
    x, W_dec = random_case(4, 50, 24, 100)
    rests = [
        (x - codes_of(x, W_dec, RULE._replace(max_stages=n), backend=backend) @ W_dec).norm(dim=1) for n in (1, 2, 5)
    ]
    assert (rests[1] <= rests[0] + 1e-9).all()
    assert (rests[2] <= rests[1] + 1e-9).all()
    assert (rests[2] < rests[0] - 1e-3).any()


@BACKENDS
def test_two_equal_rows_share_and_one_by_one_only_the_first_is_taken(backend):
    W_dec = torch.eye(4)[[0, 0, 1, 2]]
    x = torch.tensor([[2.0, 1.5, 0.0, 0.0]])
    together = codes_of(x, W_dec, RULE._replace(weak=0.5, threshold=0.2), backend=backend)
    torch.testing.assert_close(together, torch.tensor([[1.0, 1.0, 1.5, 0.0]]), rtol=1e-3, atol=1e-3)
    alone = codes_of(x[:, :3], W_dec[1:, :3], RULE._replace(weak=1.0, threshold=0.2), backend=backend)
    torch.testing.assert_close(alone, torch.tensor([[2.0, 1.5, 0.0]]), rtol=1e-4, atol=1e-4)


def crowded_case(
    seed: int, noise: float, dtype: torch.dtype, d_in: int = 32, copies: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, six directions some times each, but for noise, and others beside them; and each direction once."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = rows(6, d_in)
    base[1:] += 2 * base[0]
    crowd = torch.nn.functional.normalize(base.repeat_interleave(copies, 0) + noise * rows(6 * copies, d_in), dim=-1)
    others = torch.nn.functional.normalize(rows(40, d_in), dim=-1)
    x = rows(12, 6).relu() @ base + 0.05 * rows(12, d_in)
    return x.to(dtype), torch.cat([crowd, others]).to(dtype), torch.cat([crowd[::copies], others]).to(dtype)


def check_crowd(backend: str, seed: int, noise: float, dtype: torch.dtype, weak: float) -> None:
    """Fits on nearly dependent rows end, and explain about what one row of each direction would."""
    rule = PursuitRule(0.31, 0.1, weak, 64)
    x, W_dec, once = crowded_case(seed, noise, dtype)
    found = codes_of(x, W_dec, rule, 1.0, backend).double()
    assert (found >= 0).all()
    rest = (x - found @ W_dec.double()).square().sum(-1)
    alone = (x - codes_of(x, once, rule, 1.0, "torch").double() @ once.double()).square().sum(-1)
    # Which of the rows are active is up to rounding, and with them which others come after: seen up to 1.5 in float64.
    assert rest.sum() < 2 * alone.sum()
    assert (rest <= 1.001 * x.double().square().sum(-1)).all()


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("weak", [0.5, 0.9, 1.0])
def test_rows_that_are_nearly_equal_keep_nothing_going_for_ever(backend, dtype, noise, weak):
    """Latents of one feature, or merged dictionaries: features came and went for ever, or fits were all rounding."""
    for seed in range(2):
        check_crowd(backend, seed, noise, dtype, weak)


@GPU
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
def test_nor_do_they_on_a_gpu(noise):
    check_crowd("triton", 0, noise, torch.float32, 0.9)


def test_the_gradient_of_many_equal_rows_is_no_rounding():
    x, W_dec, _ = crowded_case(0, 0.0, torch.float32, d_in=768, copies=128)
    codes = codes_of(x, W_dec, PursuitRule(0.15, 0.1, 0.9, 64), 1.0)
    assert (codes > 0).sum(-1).max() >= 128
    grad = torch.randn_like(codes)
    of_x, _ = fit_gradients(x, W_dec, codes, grad)
    exact, _ = fit_gradients(x.double(), W_dec.double(), codes.double(), grad.double())
    # Of equal rows only what they share is determined; a factorisation that failed was wrong by a factor of 1e8.
    assert of_x.norm() < 3 * exact.norm()


@BACKENDS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tokens_that_are_not_finite_stay_visible_and_leave_the_others_alone(backend, bad):
    x, W_dec = random_case(5, 6, 12, 40)
    clean = codes_of(x, W_dec, backend=backend)
    x[2, 3] = bad
    found = codes_of(x, W_dec, backend=backend)
    assert not found[2].isfinite().all()
    others = torch.arange(6) != 2
    torch.testing.assert_close(found[others], clean[others])


@BACKENDS
def test_zero_tokens_no_tokens_and_any_leading_axes(backend):
    x, W_dec = random_case(6, 12, 8, 30)
    assert not codes_of(torch.zeros(3, 8), W_dec.float(), backend=backend).any()
    assert codes_of(x[:0], W_dec, backend=backend).shape == (0, 30)
    torch.testing.assert_close(codes_of(x.view(3, 4, 8), W_dec, backend=backend).view(12, 30), codes_of(x, W_dec))
    torch.testing.assert_close(codes_of(x[0], W_dec, backend=backend), codes_of(x, W_dec)[0])


@BACKENDS
def test_what_is_small_for_the_data_is_left_alone(backend):
    x, W_dec = random_case(7, 20, 16, 60)
    rule = RULE._replace(threshold=0.3)
    assert codes_of(1e-3 * x, W_dec, rule, 0.0, backend).any()
    assert not codes_of(1e-3 * x, W_dec, rule, float(x.norm(dim=1).mean()), backend).any()


def test_low_precision_is_computed_in_single():
    x, W_dec = random_case(8, 20, 16, 60)
    x, W_dec = x.bfloat16(), W_dec.bfloat16()
    pre = (x.float() @ W_dec.float().T).bfloat16()
    found = pursue(x, W_dec, pre, RULE, torch.tensor(0.0))
    expected = pursue(x.float(), W_dec.float(), pre.float(), RULE, torch.tensor(0.0))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_centered": torch.ones(3, 5)}, r"x_centered .* and W_dec .* got \[3, 5\] and \[6, 4\]"),
        ({"W_dec": torch.ones(6)}, r"got \[3, 4\] and \[6\]"),
        ({"correlations": torch.ones(3, 5)}, r"correlations must have shape \[3, 6\].* got \[3, 5\]"),
        ({"typical_norm": torch.ones(3)}, r"typical_norm must be one number, .* got \[3\]"),
        (
            {"W_dec": torch.ones(6, 4, dtype=torch.int64)},
            r"W_dec must be a floating-point tensor, got dtype torch.int64",
        ),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    right = {"x_centered": torch.ones(3, 4), "W_dec": torch.ones(6, 4), "correlations": torch.ones(3, 6)}
    with pytest.raises((TypeError, ValueError), match=message):
        pursue(**{**right, "rule": RULE, "typical_norm": torch.tensor(1.0), **changed})


# ---- gradients


def unrolled(x: Tensor, W_dec: Tensor, active: Tensor, stages: int = 400) -> Tensor:
    """Values by so many steps of steepest descent on the active features, which autograd can go through."""
    code = torch.zeros(len(x), len(W_dec), dtype=x.dtype)
    for _ in range(stages):
        along = ((x - code @ W_dec) @ W_dec.T) * active
        move = along @ W_dec
        code = code + along * (along.square().sum(1) / move.square().sum(1).clamp(min=1e-300))[:, None]
    return code


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_the_gradient_is_that_of_stages_unrolled_to_convergence(backend):
    x, W_dec = random_case(9, 12, 16, 40)
    x.requires_grad_(), W_dec.requires_grad_()
    code = codes_of(x, W_dec, backend=backend)
    weight = torch.randn_like(code)
    found = torch.autograd.grad((code * weight).sum(), (x, W_dec))
    through = unrolled(x, W_dec, (code > 0).detach())
    torch.testing.assert_close(through, code, rtol=1e-7, atol=1e-9)
    expected = torch.autograd.grad((through * weight).sum(), (x, W_dec))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_for_the_squared_error_the_dictionary_s_gradient_needs_no_gradient_of_the_code():
    # The envelope theorem: at the least-squares fit, by autograd through the unrolled stages, dW = -2 f r^T.
    x, W_dec = random_case(10, 12, 16, 40)
    W_dec.requires_grad_()
    code = codes_of(x, W_dec.detach())
    through = unrolled(x, W_dec, code > 0)
    (expected,) = torch.autograd.grad((x - through @ W_dec).square().sum(), W_dec)
    residual = x - code @ W_dec.detach()
    torch.testing.assert_close(-2 * code.T @ residual, expected, rtol=1e-6, atol=1e-7)


def test_gradients_pass_gradcheck():
    x, W_dec = random_case(11, 4, 10, 16)
    x.requires_grad_(), W_dec.requires_grad_()
    pre = (x @ W_dec.T).detach()
    assert torch.autograd.gradcheck(lambda x, W: pursue(x, W, pre, RULE, torch.tensor(0.0)), (x, W_dec), fast_mode=True)


def test_gradients_of_nothing():
    of_x, of_W = fit_gradients(torch.ones(2, 3), torch.eye(3), torch.zeros(2, 3), torch.ones(2, 3))
    assert not of_x.any()
    assert not of_W.any()
    assert fit_gradients(torch.ones(0, 3), torch.eye(3), torch.ones(0, 3), torch.ones(0, 3))[0].shape == (0, 3)


def test_it_compiles_without_a_break():
    x, W_dec = random_case(12, 8, 12, 40)
    compiled = torch.compile(lambda x, W: codes_of(x, W) @ W, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, W_dec), codes_of(x, W_dec) @ W_dec)
