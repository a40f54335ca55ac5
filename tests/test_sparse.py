"""Lists of active features: what is listed and when, and that decoding and gradients are those of the matmuls."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_afa import sparse
from sae_lens_afa._memory import empty, in_shape


def codes(tokens: int, d_sae: int, density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, d_sae, generator=generator).abs()
    return values * (torch.rand(tokens, d_sae, generator=generator) < density)


@given(st.integers(1, 20), st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.6, 1.0]), st.integers(0, 100))
def test_the_list_is_what_is_not_zero(tokens, d_sae, density, seed):
    acts = codes(tokens, d_sae, density, seed)
    acts[0, 0] = [1.0, -2.0, float("nan")][seed % 3]
    active = sparse.active_features(acts)
    rows = torch.repeat_interleave(torch.arange(tokens), active.offsets.diff())
    expected = (acts != 0).nonzero()
    assert torch.equal(torch.stack([rows, active.features], dim=-1), expected)
    assert torch.equal(active.values.nan_to_num(7), acts[acts != 0].nan_to_num(7))


def test_codes_that_are_denser_than_asked_for_are_not_listed():
    acts = codes(30, 50, 0.1)
    n_active = int((acts != 0).sum())
    assert sparse.active_features(acts, (n_active + 0.5) / acts.numel()) is not None
    assert sparse.active_features(acts, (n_active - 0.5) / acts.numel()) is None


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoding_is_the_matmul(density, dtype):
    acts, W_dec = codes(33, 70, density).to(dtype), torch.randn(70, 19, dtype=dtype)
    # Sums of up to 70 products of size 1, in another order.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(
        sparse.decode(sparse.active_features(acts), W_dec), acts @ W_dec, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("d_sae", [1, 16, 70])
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_are_those_of_the_matmuls(beside, d_sae, threads, monkeypatch):
    monkeypatch.setattr("sae_lens_afa.kernels.compiled._ELEMENTS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    acts, W_dec, x = codes(33, d_sae, 0.3), torch.randn(d_sae, 19), torch.randn(33, 19)
    grad_recons, grad_acts = torch.randn(33, 19), torch.randn(33, d_sae)
    found = sparse.step_gradients(sparse.active_features(acts), x, W_dec, grad_recons, grad_acts if beside else None)
    grad_pre = (grad_recons @ W_dec.T + (grad_acts if beside else 0)) * (acts > 0)
    torch.testing.assert_close(found.W_dec, acts.T @ grad_recons, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.W_enc, x.T @ grad_pre, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.sums, grad_pre.sum(0), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (7, 5), (3, 1 << 10, 1 << 9), (0, 4)])
def test_fresh_memory_is_an_ordinary_tensor(dtype, shape):
    tensor = empty(shape, torch.ones((), dtype=dtype))
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert tensor.numel() == 0 or tensor.data_ptr() % 16 == 0
    assert not tensor._is_view()
    assert (tensor.fill_(2) == 2).all()
    assert empty(shape, torch.ones((), device="meta")).device.type == "meta"


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (24,), (0, 4)])
def test_another_shape_is_no_view_either(shape):
    fresh = torch.arange(24.0)[: math.prod(shape)].reshape(-1, 4).clone()
    for tensor in (fresh, fresh.T.contiguous().T):  # the second is not contiguous
        found = in_shape(tensor, shape)
        assert not found._is_view()
        assert torch.equal(found, fresh.reshape(shape))
        assert found.is_contiguous() or found is tensor
    assert in_shape(fresh, shape).data_ptr() == fresh.data_ptr()


def test_a_result_holds_its_memory():
    results = [in_shape(empty((1 << 11, 1 << 10), torch.ones(())).fill_(i), (1 << 10, 1 << 11)) for i in range(3)]
    gc.collect()
    assert [float(t.mean()) for t in results] == [0.0, 1.0, 2.0]
