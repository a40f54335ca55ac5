"""The selection by a threshold: every path against the literal rule, its gradient, its edges."""

from __future__ import annotations

import sys

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import selection_inputs

from sae_lens_afa.selection import above_threshold, rules

BACKENDS = ("numba", "torch")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(inputs=selection_inputs(), share=st.floats(0, 1.2))
def test_equals_the_literal_rule(backend, inputs, share):
    acts, target, decoder_norm = inputs
    # Of a row's norm: from a threshold that all exceed to one that none does.
    threshold = target * share
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_LENS_AFA_BACKEND", backend)
        patch.setattr(rules, "_CPU_CHUNK", 256)  # several chunks
        found = above_threshold(acts, threshold, decoder_norm)
        assert same(found, reference.above_threshold(acts, threshold, decoder_norm))
        wide = acts.double()
        assert same(
            above_threshold(wide, threshold, decoder_norm), reference.above_threshold(wide, threshold, decoder_norm)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_meets_the_threshold_exactly_is_not_kept(backend, monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
    acts, norm = torch.tensor([[2.0, 2.0000002, 1.0, -5.0]]), torch.tensor([1.5, 1.5, 3.5, 9.0])
    assert above_threshold(acts, torch.tensor([3.0]), norm).tolist() == [[0.0, acts[0, 1].item(), 1.0, 0.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_threshold_of_zero_is_a_relu(backend, monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
    acts = torch.randn(5, 33)
    assert torch.equal(above_threshold(acts, torch.zeros(5)), acts.relu())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["acts", "threshold"])
def test_a_row_that_is_not_finite_is_returned_as_it_is(backend, bad, where, monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
    acts, threshold, norm = torch.randn(4, 20), torch.rand(4), torch.rand(20)
    norm[3] = 0
    clean = above_threshold(acts, threshold, norm)
    acts[2, 3], threshold[2] = (bad, 0.5) if where == "acts" else (1.0, bad)
    found = above_threshold(acts, threshold, norm)
    assert same(found[2], acts[2])
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


def test_any_memory_layout_gives_the_same():
    acts, threshold, norm = torch.randn(6, 50), torch.rand(6), torch.rand(50)
    expected = above_threshold(acts, threshold, norm)
    assert torch.equal(above_threshold(acts.T.contiguous().T, threshold, norm), expected)
    assert torch.equal(above_threshold(acts[:, None], threshold.repeat(2)[:6, None], norm), expected[:, None])
    strided = torch.stack([norm, norm], -1)[:, 0]
    assert torch.equal(above_threshold(acts, torch.stack([threshold, threshold], -1)[:, 0], strided), expected)


def test_an_empty_batch_is_empty():
    assert above_threshold(torch.zeros(0, 5), torch.zeros(0)).shape == (0, 5)


def test_the_gradient_is_that_of_a_constant_mask():
    acts = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    threshold, grad = torch.rand(4, dtype=torch.float64), torch.randn(4, 30, dtype=torch.float64)
    out = above_threshold(acts, threshold)
    out.backward(grad)
    assert torch.equal(acts.grad, grad * (out > 0))
    assert torch.autograd.gradcheck(lambda a: above_threshold(a, threshold), acts, fast_mode=True)


def test_compiles_into_one_graph():
    acts, threshold, norm = torch.randn(3, 40, requires_grad=True), torch.rand(3), torch.rand(40)
    (expected,) = torch.autograd.grad(above_threshold(acts, threshold, norm).square().sum(), acts)
    out = torch.compile(above_threshold, backend="aot_eager", fullgraph=True)(acts, threshold, norm)
    assert torch.equal(out, above_threshold(acts, threshold, norm))
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), acts)[0], expected)


@pytest.mark.parametrize(
    ("acts", "threshold", "norm", "error", "message"),
    [
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2), None, TypeError, "acts.*floating-point.*int64"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.int64), None, TypeError, "threshold"),
        (torch.tensor(1.0), torch.tensor(1.0), None, ValueError, r"acts.*\[\.\.\., d_sae\]"),
        (torch.ones(2, 3), torch.ones(3), None, ValueError, r"threshold must have shape \[2\].*got \[3\]"),
        (torch.ones(2, 3), torch.ones(2), torch.ones(2), ValueError, r"decoder_norm.*\[3\].*got \[2\]"),
    ],
)
def test_wrong_arguments_are_named(acts, threshold, norm, error, message):
    with pytest.raises(error, match=message):
        above_threshold(acts, threshold, norm)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc (cuda is not involved)")
@pytest.mark.parametrize("backend", BACKENDS)
def test_extra_memory_is_at_most_a_tenth_above_the_output(backend, client):
    script = """
import torch
from sae_lens_afa.selection import above_threshold
def peak_kib():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
acts = torch.randn(1024, 12288)
threshold, norm = torch.ones(1024), torch.ones(12288)
above_threshold(acts[:64], threshold[:64], norm)
open("/proc/self/clear_refs", "w").write("5")
before = peak_kib()
out = above_threshold(acts, threshold, norm)
print((peak_kib() - before) * 1024 / acts.nbytes)
"""
    assert float(client.run(script, SAE_LENS_AFA_BACKEND=backend).output) <= 1.1
