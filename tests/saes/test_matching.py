"""Which entries of a batch are matched: fast paths against the literal rule."""

from __future__ import annotations

import choice_reference as reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_afa.saes import _cut
from sae_lens_afa.saes._matching import feature_choice, firing_counts, just_below, mutual_choice, reached_counts


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([(1, 1), (1, 9), (7, 1), (5, 6), (17, 3), (2, 4, 5), (3,)]))
    acts = torch.randn(shape, generator=generator)
    kind = draw(st.sampled_from(["gaussian", "tied", "negative", "positive", "equal", "tiny"]))
    if kind == "tied":
        acts = (acts * 2).round() / 2
    elif kind == "negative":
        acts = -acts.abs()
    elif kind == "positive":
        acts = acts.abs()
    elif kind == "equal":
        acts = torch.ones(shape)
    elif kind == "tiny":
        acts = acts * 1e-42
    return acts.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))


def wherever(call, acts: Tensor):
    """The result on CPU, which also has to be that of the path for accelerators."""
    out, cut = call(acts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cut, "on_cpu", lambda _: False)
        elsewhere, other_cut = call(acts)
    assert torch.equal(out, elsewhere)
    assert torch.equal(cut, other_cut)
    return out, cut


@given(batches(), st.integers(1, 200))
def test_mutual_choice_keeps_the_largest_of_the_batch(acts, n_matches):
    n_matches = min(n_matches, acts.numel())
    out, cut = wherever(lambda a: mutual_choice(a, n_matches), acts)
    assert torch.equal(out, reference.mutual_choice(acts, n_matches))
    positive = int((acts > 0).sum())
    assert int((out > 0).sum()) == min(n_matches, positive)
    assert cut == (out[out > 0].min().float() if positive >= n_matches else 0)


@given(batches(), st.randoms(use_true_random=False))
def test_feature_choice_keeps_the_largest_of_each_feature(acts, random):
    n_tokens = acts.shape[:-1].numel()
    n_matches = torch.tensor([random.randint(0, n_tokens) for _ in range(acts.shape[-1])])
    out, cut = wherever(lambda a: feature_choice(a, n_matches), acts)
    assert torch.equal(out, reference.feature_choice(acts, n_matches.tolist()))
    rows, kept = acts.reshape(n_tokens, -1), out.reshape(n_tokens, -1)
    for i, most in enumerate(n_matches.tolist()):
        positive = int((rows[:, i] > 0).sum())
        assert int((kept[:, i] > 0).sum()) == min(most, positive)
        expected = torch.inf if most == 0 else kept[:, i][kept[:, i] > 0].min() if positive >= most else 0.0
        assert cut[i] == torch.as_tensor(expected).float()


def test_with_no_ties_mutual_choice_is_saelens_batchtopk():
    from sae_lens.saes.batchtopk_sae import BatchTopK

    acts = torch.randn(40, 60)
    assert torch.equal(mutual_choice(acts, 40 * 3)[0], BatchTopK(3)(acts))


def test_a_batch_much_larger_than_the_sample_is_cut_exactly():
    acts = torch.randn(300, 2000)
    acts[:, ::2] -= 100  # the sample sees half of nothing
    for n_matches in (1, 7, 5000, 250_000):
        out, cut = mutual_choice(acts, n_matches)
        assert cut == acts.flatten().sort(descending=True).values[n_matches - 1].clamp(min=0)
        assert int((out > 0).sum()) == min(n_matches, int((acts > 0).sum()))


def test_a_batch_with_few_values_far_out_is_cut_exactly():
    # So few that a sample misses them.
    acts = torch.zeros(1000, 1000)
    acts[torch.arange(20), torch.arange(20)] = torch.arange(1.0, 21.0)
    assert mutual_choice(acts, 5)[1] == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_not_finite_stays_as_it_is_and_takes_its_share_of_the_matches_with_it(bad, dtype):
    acts = torch.randn(2, 10, 30).to(dtype)
    acts[1, 3, 4] = bad
    others = torch.arange(20) != 13
    clean = acts.reshape(20, 30)[others]
    for out, expected in (
        (mutual_choice(acts, 50)[0], reference.mutual_choice(clean, 48)),  # 50 * 19 / 20, to even
        (feature_choice(acts, torch.full((30,), 12))[0], reference.feature_choice(clean, [11] * 30)),
    ):
        rows = out.reshape(20, 30)
        assert torch.equal(rows[others], expected)
        torch.testing.assert_close(rows[13], acts[1, 3], rtol=0, atol=0, equal_nan=True)


def test_a_batch_without_a_finite_token_has_no_cut():
    acts = torch.full((4, 6), torch.nan)
    for out, cut in (mutual_choice(acts, 5), feature_choice(acts, torch.full((6,), 2))):
        assert out.isnan().all()
        assert cut.isnan().all()


def test_float64_is_compared_as_float32():
    acts = torch.randn(20, 30, dtype=torch.float64)
    acts[5] = acts[4] * (1 + 1e-12)  # equal to float32's eyes: the first is matched first
    most = torch.full((30,), 3)
    for out, expected in (
        (mutual_choice(acts, 77)[0], reference.mutual_choice(acts.float(), 77)),
        (feature_choice(acts, most)[0], reference.feature_choice(acts.float(), most.tolist())),
    ):
        assert torch.equal(out, torch.where(expected > 0, acts, 0))


def test_the_gradient_is_that_of_a_constant_mask():
    acts = torch.randn(9, 8, requires_grad=True)
    for call in (lambda a: mutual_choice(a, 20), lambda a: feature_choice(a, torch.arange(8))):
        out = call(acts)[0]
        grad = torch.randn(9, 8)
        (found,) = torch.autograd.grad(out, acts, grad)
        assert torch.equal(found, grad * (out > 0))


def test_what_is_passed_in_is_left_alone():
    acts = (torch.randn(9, 8) * 2).round()
    before = acts.clone()
    mutual_choice(acts, 3)
    feature_choice(acts, torch.ones(8, dtype=torch.int64))
    assert torch.equal(acts, before)


@given(batches())
def test_firing_counts_are_per_feature(acts):
    rows = acts.reshape(-1, acts.shape[-1])
    assert torch.equal(firing_counts(acts), (rows > 0).sum(0))
    above = torch.rand(acts.shape[-1])
    assert torch.equal(firing_counts(acts, above), (rows > above).sum(0))
    assert torch.equal(reached_counts(acts, above), ((rows.float() >= above) & (rows > 0)).sum(0))
    assert torch.equal(reached_counts(acts, 0 * above), (rows > 0).sum(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_exceeds_the_value_just_below_a_threshold_reaches_the_threshold(dtype):
    threshold = torch.cat([torch.rand(200), torch.tensor([0.0, 2.0**-149, 1.0, 65520.0, 3e38])])
    threshold[:100] = threshold[:100].to(dtype).float()  # where a value of this dtype lies on the threshold
    below = just_below(threshold, dtype)
    assert below.dtype == dtype
    assert (below >= 0).all()
    values = threshold[:, None].to(dtype) * torch.tensor([0.98, 1.0, 1.02], dtype=dtype)
    values = torch.cat([values, threshold.to(dtype)[:, None], below[:, None]], dim=-1)
    reaches = (values.float() >= threshold[:, None]) & (values > 0)
    assert torch.equal(values > below[:, None], reaches)


def test_a_threshold_that_is_not_a_number_stays_visible():
    for dtype in (torch.bfloat16, torch.float32):
        assert just_below(torch.tensor([torch.nan]), dtype).isnan().all()


def test_operators_pass_torch_s_own_check():
    acts = torch.randn(5, 6, requires_grad=True)
    for operator, args in (("mutual_choice", (acts, 7)), ("feature_choice", (acts, torch.tensor([0, 1, 2, 3, 4, 5])))):
        torch.library.opcheck(getattr(torch.ops.sae_lens_afa, operator), args)
