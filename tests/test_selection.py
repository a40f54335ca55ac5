"""The selection rule: every back end against the literal one, its invariances, its edges."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import assert_same_selection
from strategies import selection_inputs

from sae_lens_afa.selection import available_backends, norm_matching_topk
from sae_lens_afa.selection._bisection import select_by_bisection

FINITE = ("gaussian", "sparse", "tied", "all_positive", "long_tail")


# "bisection" is what the back end "torch" does on accelerators.
ALGORITHMS = ["numba", "torch", "bisection"]


def select(algorithm, acts, target, decoder_norm=None):
    if algorithm != "bisection":
        return norm_matching_topk(acts, target, decoder_norm, backend=algorithm)
    return select_by_bisection(acts.reshape(-1, acts.shape[-1]), target.reshape(-1), decoder_norm).view(acts.shape)


@settings(max_examples=100)
@given(selection_inputs())
def test_equals_the_literal_rule(inputs):
    assert_same_selection(norm_matching_topk(*inputs), *inputs)


@pytest.mark.skipif("triton" not in available_backends(), reason="Triton is not installed")
@settings(max_examples=20)
@given(selection_inputs(longest=2))
def test_the_gpu_kernels_equal_the_literal_rule(inputs):
    # On cuda where there is one, else in Triton's interpreter, which takes long for each row: few of them.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_device = [None if t is None else t.to(device) for t in inputs]
    assert_same_selection(norm_matching_topk(*on_device, backend="triton").cpu(), *inputs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=100)
@given(inputs=selection_inputs())
def test_each_algorithm_equals_the_literal_rule(algorithm, inputs):
    assert_same_selection(select(algorithm, *inputs), *inputs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equals_the_literal_rule_at_the_width_of_a_real_sae(algorithm):
    acts = torch.randn(6, 12288)
    acts[1] = acts[1].abs()
    acts[2] -= 1.3
    target = acts.relu().double().norm(dim=-1) * torch.tensor([0.25, 0.8, 0.8, 0.99, 1.0 + 1e-9, 0.0])
    assert_same_selection(select(algorithm, acts, target), acts, target)


@given(selection_inputs(kinds=FINITE), st.integers(-30, 30))
def test_scaling_activations_and_target_together_changes_nothing(inputs, exponent):
    acts, target, decoder_norm = inputs
    assume(acts.dtype == torch.float32)
    scale = 2.0**exponent
    scaled = norm_matching_topk(acts * scale, target * scale, decoder_norm)
    assert torch.equal(scaled, norm_matching_topk(acts, target, decoder_norm) * scale)


@given(selection_inputs(kinds=FINITE))
def test_decoder_norms_can_be_moved_into_the_encoder(inputs):
    acts, target, decoder_norm = inputs
    assume(decoder_norm is not None)
    folded = norm_matching_topk(acts.float() * decoder_norm, target)
    kept = norm_matching_topk(acts.float(), target, decoder_norm)
    assert torch.equal(folded, kept * decoder_norm)


@given(selection_inputs(kinds=("gaussian", "all_positive")), st.randoms(use_true_random=False))
def test_permuting_features_permutes_the_selection(inputs, random):
    acts, target, decoder_norm = inputs
    order = list(range(acts.shape[-1]))
    random.shuffle(order)
    energy = (acts.float().relu() * (1 if decoder_norm is None else decoder_norm)).square().reshape(-1, len(order))
    assume(all(len(row[row > 0].unique()) == int((row > 0).sum()) for row in energy))
    permuted = norm_matching_topk(acts[..., order], target, None if decoder_norm is None else decoder_norm[order])
    assert torch.equal(permuted, norm_matching_topk(acts, target, decoder_norm)[..., order])


@given(selection_inputs(kinds=FINITE), st.floats(1.0, 3.0))
def test_a_higher_target_never_keeps_fewer(inputs, factor):
    acts, target, decoder_norm = inputs
    fewer = norm_matching_topk(acts, target, decoder_norm) != 0
    more = norm_matching_topk(acts, target * factor, decoder_norm) != 0
    assert (more | ~fewer).all()


@given(selection_inputs(kinds=FINITE))
def test_rows_do_not_depend_on_each_other(inputs):
    acts, target, decoder_norm = inputs
    together = norm_matching_topk(acts, target, decoder_norm).reshape(-1, acts.shape[-1])
    rows, targets = acts.reshape(-1, acts.shape[-1]), target.reshape(-1)
    alone = torch.stack([norm_matching_topk(r, t, decoder_norm) for r, t in zip(rows, targets, strict=True)])
    assert torch.equal(together, alone)


def test_matches_norms_and_not_squared_norms():
    acts = torch.tensor([1.0, 1.2])
    energy = torch.tensor([1.44, 2.44]).double()
    middle_of_norms, middle_of_squares = energy.sqrt().mean().item(), energy.mean().sqrt().item()
    target = (middle_of_norms + middle_of_squares) / 2
    # Nearer to one feature in squared norms, to two in norms: the paper compares norms.
    assert abs(target**2 - energy[0]) < abs(target**2 - energy[1])
    assert norm_matching_topk(acts, torch.tensor(target)).tolist() == pytest.approx([1.0, 1.2])
    assert norm_matching_topk(acts, torch.tensor(middle_of_norms - 1e-3)).tolist() == pytest.approx([0.0, 1.2])


def test_equal_values_at_the_boundary_are_kept_lowest_index_first():
    acts = torch.tensor([[2.0, 1.0, 3.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    target = torch.tensor([(9 + 4 + 4) ** 0.5, 3**0.5])
    out = norm_matching_topk(acts, target)
    assert out.tolist() == [[2, 0, 3, 2, 0], [1, 1, 1, 0, 0]]


def test_the_smaller_number_is_kept_where_both_are_as_near():
    acts = torch.tensor([3.0, 4.0])  # norms 4 and 5
    assert norm_matching_topk(acts, torch.tensor(4.5)).tolist() == [0, 4]


def test_at_least_one_is_kept_even_for_a_zero_target():
    assert norm_matching_topk(torch.tensor([1.0, 2.0]), torch.tensor(0.0)).tolist() == [0, 2]


def test_a_row_without_positive_energy_is_zero():
    acts = torch.tensor([[-1.0, 0.0], [5.0, -1.0]])
    assert norm_matching_topk(acts, torch.ones(2), torch.tensor([0.0, 1.0])).tolist() == [[0, 0], [0, 0]]


def test_a_row_that_is_not_finite_is_passed_through():
    acts = torch.tensor([[torch.nan, 1.0, -2.0], [1.0, 2.0, 3.0], [-torch.inf, 1.0, 2.0], [3.0, 4.0, 0.5]])
    out = norm_matching_topk(acts, torch.tensor([1.0, torch.nan, 1.0, 4.9]))
    assert torch.equal(out[:3].nan_to_num(7), acts[:3].nan_to_num(7))
    assert out[3].tolist() == [3, 4, 0]


def test_float64_activations_keep_their_precision_and_range():
    acts = torch.tensor([3e200, 4e200, 1e200], dtype=torch.float64)
    assert norm_matching_topk(acts, torch.tensor(4.9e200, dtype=torch.float64)).tolist() == [3e200, 4e200, 0]


def test_an_empty_batch_is_empty():
    assert norm_matching_topk(torch.zeros(0, 5), torch.zeros(0)).shape == (0, 5)


def test_the_gradient_is_that_of_a_constant_mask():
    acts = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    target = acts.detach().relu().norm(dim=-1) * 0.7
    grad = torch.randn(4, 30, dtype=torch.float64)
    out = norm_matching_topk(acts, target)
    out.backward(grad)
    assert torch.equal(acts.grad, grad * (out > 0))
    assert torch.autograd.gradcheck(lambda a: norm_matching_topk(a, target), acts, fast_mode=True)


def test_compiles_into_one_graph():
    compiled = torch.compile(norm_matching_topk, backend="aot_eager", fullgraph=True)
    acts, target, norm = torch.randn(3, 40), torch.rand(3) * 4, torch.rand(40)
    assert torch.equal(compiled(acts, target, norm), norm_matching_topk(acts, target, norm))


@pytest.mark.parametrize(
    ("acts", "target", "norm", "error", "message"),
    [
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2), None, TypeError, "acts.*floating-point.*int64"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.int64), None, TypeError, "target_norm"),
        (torch.tensor(1.0), torch.tensor(1.0), None, ValueError, r"acts.*\[\.\.\., d_sae\]"),
        (torch.ones(2, 0), torch.ones(2), None, ValueError, "d_sae >= 1"),
        (torch.ones(2, 3), torch.ones(3), None, ValueError, r"target_norm.*\[2\].*got \[3\]"),
        (torch.ones(2, 3), torch.ones(2, 1), None, ValueError, r"target_norm.*got \[2, 1\]"),
        (torch.ones(2, 3), torch.ones(2), torch.ones(2), ValueError, r"decoder_norm.*\[3\].*got \[2\]"),
    ],
)
def test_wrong_arguments_are_named(acts, target, norm, error, message):
    with pytest.raises(error, match=message):
        norm_matching_topk(acts, target, norm)


def test_an_unknown_backend_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"'auto' or one of \[.*'torch'\], got 'abacus'"):
        norm_matching_topk(torch.ones(2, 3), torch.ones(2), backend="abacus")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc (cuda is not involved)")
def test_extra_memory_is_at_most_a_tenth_above_the_output(client):
    # In a process of its own: what counts is the resident peak, in which numpy's and torch's memory both show.
    script = """
import torch
from sae_lens_afa.selection import norm_matching_topk
def peak_kib():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
rows, d_sae = 2048, 12288
acts = torch.randn(rows, d_sae)
target, norm = acts[:, :100].norm(dim=-1), torch.ones(d_sae)
norm_matching_topk(acts[:32], target[:32], norm)
open("/proc/self/clear_refs", "w").write("5")
before = peak_kib()
norm_matching_topk(acts, target, norm)
print((peak_kib() - before) * 1024 / acts.nbytes)
"""
    assert float(client.run(script).output) <= 1.1
