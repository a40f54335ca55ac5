"""torch.func's transforms and forward-mode differentiation: they give what autograd gives, or nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from small_saes import D_IN, D_SAE, INFERENCE, KINDS, build, step
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

from sae_lens_afa import functional

EVERY = pytest.mark.parametrize("kind", KINDS)
NORMALIZED = pytest.mark.parametrize("normalize", ["none", "layer_norm"])
# Of float64: sums of a few dozen terms in another order, and pursuit's fits by another solver.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def small(kind: str, normalize: str = "none"):
    torch.manual_seed(0)
    # Some features are to be active in so few dimensions.
    options = {"threshold_scale": 0.5} if "afa_threshold" in kind or "pursuit" in kind else {}
    sae = build(kind, dtype="float64", normalize_activations=normalize, **options).eval()
    if "pursuit" in kind:
        sae.typical_norm.fill_(1.0)
    return sae


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jacobian(function, x: torch.Tensor) -> torch.Tensor:
    """Row by row, by plain autograd."""
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in function(x).flatten()]
    return torch.stack(rows).reshape(*function(x).shape, *x.shape)


@EVERY
@NORMALIZED
@pytest.mark.parametrize("whole", [False, True], ids=["encode", "forward"])
def test_jacobians_both_ways_are_autograd_s(kind, normalize, whole):
    sae, x = small(kind, normalize), tokens(3)
    function = sae if whole else sae.encode
    expected = jacobian(function, x)
    assert expected.any()
    torch.testing.assert_close(jacrev(function)(x), expected, **CLOSE)
    torch.testing.assert_close(jacfwd(function)(x), expected, **CLOSE)


@pytest.mark.parametrize("kind", INFERENCE)
@NORMALIZED
@pytest.mark.parametrize("way", [jacrev, jacfwd])
def test_a_jacobian_for_each_token(kind, normalize, way):
    sae, x = small(kind, normalize), tokens(3)
    expected = torch.stack([jacobian(sae.encode, token) for token in x])
    torch.testing.assert_close(vmap(way(sae.encode))(x), expected, **CLOSE)


@EVERY
@pytest.mark.parametrize("frozen", [False, True])
def test_a_derivative_forwards_is_never_zero_without_a_word(kind, frozen):
    sae, x, along = small(kind).requires_grad_(not frozen), tokens(3), tokens(3).flip(0)
    expected = jacobian(sae.encode, x).flatten(2).flatten(0, 1) @ along.flatten()
    codes, derivative = jvp(sae.encode, (x,), (along,))
    torch.testing.assert_close(codes, sae.encode(x), **CLOSE)
    torch.testing.assert_close(derivative.flatten(), expected, **CLOSE)
    with forward_ad.dual_level():
        dual = sae.encode(forward_ad.make_dual(x, along))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, derivative, **CLOSE)


@EVERY
@NORMALIZED
@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_over_tokens_is_the_batch(kind, normalize, axis):
    sae, x = small(kind, normalize), tokens(4, 3)
    for function in (sae.encode, sae):
        torch.testing.assert_close(vmap(function, in_dims=axis, out_dims=axis)(x), function(x), **CLOSE)
        with torch.no_grad():
            torch.testing.assert_close(vmap(vmap(function))(x), function(x), **CLOSE)


@EVERY
def test_gradients_of_each_token_alone_add_up_to_the_batch_s(kind):
    sae, x = small(kind), tokens(4)

    def loss(weights, token):
        return (functional_call(sae, weights, token) - token).square().sum()

    weights = dict(sae.named_parameters())
    each = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    loss(weights, x).backward()
    for name, weight in weights.items():
        if weight.grad is None:  # of a threshold that no gradient reaches
            assert not each[name].any()
            continue
        torch.testing.assert_close(each[name].sum(0), weight.grad, **CLOSE)


@pytest.mark.parametrize("kind", INFERENCE)
def test_several_saes_in_one_call(kind):
    saes = [small(kind), small(kind)]
    with torch.no_grad():
        saes[1].W_dec.copy_(saes[1].W_dec.flip(0))
    weights, buffers = stack_module_state(saes)
    shared = copy.deepcopy(saes[0])

    def encode(weights, buffers, x):
        return functional_call(shared, (weights, buffers), x)

    x = tokens(5)
    found = vmap(encode, in_dims=(0, 0, None))(weights, buffers, x)
    torch.testing.assert_close(found, torch.stack([sae(x) for sae in saes]), **CLOSE)


@pytest.mark.parametrize("kind", INFERENCE)
def test_second_derivatives(kind):
    """A code is linear in its token between changes of what is active: the Hessian of ||f||^2 / 2 is J^T J."""
    sae, x = small(kind), tokens()
    J = jacobian(sae.encode, x)
    hessian = jacfwd(jacrev(lambda x: sae.encode(x).square().sum() / 2))(x)
    torch.testing.assert_close(hessian, J.T @ J, **CLOSE)


@pytest.mark.parametrize("kind", INFERENCE)
def test_tokens_that_are_not_finite_stay_visible_and_disturb_no_other(kind):
    sae, x = small(kind), tokens(3)
    x[1, 0] = torch.nan
    codes, derivative = jvp(sae.encode, (x,), (torch.ones_like(x),))
    assert codes[1].isnan().any()
    torch.testing.assert_close(codes[::2], sae.encode(x[::2]), **CLOSE)
    assert derivative[::2].isfinite().all()
    torch.testing.assert_close(vmap(sae.encode)(x), sae.encode(x), equal_nan=True, **CLOSE)


@pytest.mark.parametrize("kind", INFERENCE)
def test_batches_that_are_decoded_by_lists_otherwise(kind):
    sae = small(kind).requires_grad_(False)
    codes = torch.zeros(1 << 18, dtype=torch.float64).reshape(-1, 64)[:, :D_SAE].repeat(2, 1)
    codes[:, :2] = 1.0
    assert codes.numel() >= 1 << 18
    _, derivative = jvp(sae.decode, (codes,), (codes,))
    torch.testing.assert_close(derivative, codes @ sae.W_dec, **CLOSE)


def test_norms_of_codes():
    codes, W_dec = tokens(3).relu(), torch.randn(D_IN, 5, dtype=torch.float64)

    def norm(codes):
        return functional.feature_norm(codes, W_dec)

    expected = jacobian(norm, codes)
    torch.testing.assert_close(jacfwd(norm)(codes), expected, **CLOSE)
    torch.testing.assert_close(vmap(norm)(codes), norm(codes), **CLOSE)


@pytest.mark.parametrize("kind", INFERENCE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_cast_by_torch_s_own_methods(kind, dtype):
    """`sae.half()` passes SAELens by, which keeps an idea of the dtype."""
    sae = getattr(build(kind), {torch.float16: "half", torch.float64: "double"}.get(dtype, "bfloat16"))()
    x = torch.randn(4, D_IN, dtype=dtype)
    for inputs in (x, x.float()):
        codes = sae.encode(inputs)
        assert codes.dtype == dtype
        assert sae.decode(codes).dtype == dtype
        assert sae(inputs).isfinite().all()


@pytest.mark.parametrize("name", ["top_afa", "afa_threshold", "afa_pursuit"])
def test_a_training_step_after_such_a_cast(name):
    x = torch.randn(64, D_IN)
    assert step(build(name).bfloat16().train(), x.bfloat16()).loss.isfinite()
    expected, sae = build(name, dtype="float64"), build(name).double()
    sae.load_state_dict(expected.state_dict())
    torch.testing.assert_close(sae.encode(x.double() / 3), expected.encode(x.double() / 3), **CLOSE)
