"""The training step's own gradients: those of plain autograd, whatever path is taken, with less work."""

from __future__ import annotations

import pytest
import torch
from step_paths import PATHS, take
from top_afa_helpers import D_IN, D_SAE, LossOnly, build, step, to_inference
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sae_lens_afa import TopAFATrainingSAE
from sae_lens_afa.selection import norm_matching_topk

__all__ = ["take"]  # a fixture


def plain_loss(sae: TopAFATrainingSAE, x: Tensor, dead: Tensor) -> Tensor:
    """The step as the definitions read, by autograd alone."""
    z = sae.run_time_activation_norm_fn_in(x)
    centered = z - sae.b_dec
    hidden_pre = centered @ sae.W_enc
    ratio = sae.cfg.target_ratio
    target = ratio * centered.detach().double().norm(dim=-1)
    f = norm_matching_topk(hidden_pre, target, sae.W_dec.detach().norm(dim=-1))
    recons = f @ sae.W_dec + sae.b_dec
    loss = (recons - z).square().mean() + (f.norm(dim=-1) - ratio * z.norm(dim=-1)).square().mean() / 32
    index = (dead & ~(f > 0).flatten(0, -2).any(0)).nonzero().squeeze(-1)
    if len(index) > 0:
        residual = (z - recons).detach() if sae.cfg.detach_aux_residual else z - recons
        loss = loss + (hidden_pre[..., index].relu() @ sae.W_dec[index] - residual).square().mean() / 32
    return loss * (sae.cfg.d_in if sae.cfg.loss_reduction == "sum" else 1)


def sae_with_dead_latents(**overrides) -> tuple[TopAFATrainingSAE, Tensor]:
    sae = build(**overrides)
    sae.W_enc.data *= 5  # so strong that not all are needed,
    sae.W_enc.data[:, ::3] *= 1e-3  # and a third too weak to be selected
    return sae, torch.arange(D_SAE) % 3 == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize(("detach", "ratio"), [(True, 1.0), (False, 1.0), (True, 0.6)])
@pytest.mark.parametrize("shape", [(9,), (3, 4)])
def test_loss_and_gradients_are_those_of_autograd(path, normalize, detach, ratio, shape, take):
    sae, dead = sae_with_dead_latents(normalize_activations=normalize, detach_aux_residual=detach, target_ratio=ratio)
    x = torch.randn(*shape, D_IN)
    expected = plain_loss(sae, x, dead)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    take(path, sae)
    out = step(sae, x, dead)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected)
    for name, p in sae.named_parameters():
        # float32 sums in another order: 1e-5 of the largest entry.
        assert (p.grad - gradients[name]).abs().max() <= 1e-5 * gradients[name].abs().max(), name


@pytest.mark.parametrize("path", PATHS)
def test_the_input_gets_its_gradient_where_it_asks_for_one(path, take):
    sae, dead = sae_with_dead_latents(normalize_activations="none")
    x = torch.randn(7, D_IN, requires_grad=True)
    (expected,) = torch.autograd.grad(plain_loss(sae, x, dead), x)
    take(path, sae)
    step(sae, x, dead).loss.backward()
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-5)
    assert sae.b_dec.grad is not None


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_gradients_pass_gradcheck_on_either_path(path, take):
    sae = build(dtype="float64", loss_reduction="mean", detach_aux_residual=False)
    take(path, sae)
    x, dead = torch.randn(5, D_IN, dtype=torch.float64), torch.arange(D_SAE) % 2 == 0

    def loss(*parameters: Tensor) -> Tensor:
        names = ("sae.W_enc", "sae.W_dec", "sae.b_dec")
        return torch.func.functional_call(LossOnly(sae, dead), dict(zip(names, parameters, strict=True)), x)

    parameters = tuple(p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_dec))
    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_every_output_can_be_differentiated(path, take):
    sae = build()
    take(path, sae)
    x = torch.randn(6, D_IN)
    weights = [torch.randn(6, D_SAE), torch.randn(6, D_SAE)]

    def gradients(feature_acts: Tensor, hidden_pre: Tensor) -> tuple[Tensor, ...]:
        loss = (feature_acts * weights[0]).sum() + (hidden_pre * weights[1]).sum()
        return torch.autograd.grad(loss, (sae.W_enc, sae.b_dec))

    out = step(sae, x)
    for found, expected in zip(
        gradients(out.feature_acts, out.hidden_pre), gradients(*sae.encode_with_hidden_pre(x)), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_no_matmul_over_the_batch_is_spent_on_the_bias(path, take):
    sae = build()
    take(path, sae)
    x = torch.randn(64, D_IN)
    with FlopCounterMode(display=False) as counter:
        step(sae, x).loss.backward()
    matmul = 2 * len(x) * D_IN * D_SAE
    n_matmuls = 1 if path == "sparse" else 5  # encode, decode, d acts, dW_dec, dW_enc
    assert n_matmuls * matmul <= counter.get_total_flops() <= (n_matmuls + 0.1) * matmul


def test_a_hook_that_changes_the_code_changes_the_reconstruction(take):
    sae = build(normalize_activations="none")
    take("sparse", sae)
    sae.add_hook("hook_sae_acts_post", lambda acts, hook: acts + 1)
    x = torch.randn(5, D_IN)
    out = step(sae, x)
    torch.testing.assert_close(out.sae_out, out.feature_acts @ sae.W_dec + sae.b_dec)
    assert (out.feature_acts > 0).all()
    with torch.no_grad():
        torch.testing.assert_close(sae(x), out.sae_out)


def test_a_hook_sees_the_gradient_of_inactive_features_too(take):
    sae = build(normalize_activations="none")
    take("sparse", sae)
    seen = []
    sae.add_hook("hook_sae_acts_post", lambda grad, hook: seen.append(grad), dir="bwd")
    out = step(sae, torch.randn(5, D_IN))
    out.loss.backward()
    assert (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[out.feature_acts == 0].abs().max() > 0


def test_inference_decodes_what_it_is_given(tmp_path, take):
    sae = to_inference(build(normalize_activations="none"), tmp_path)
    x = torch.randn(4, 6, D_IN)
    found = {}
    for path in ("sparse", "dense"):
        take(path, sae)
        with torch.no_grad():
            found[path] = sae(x), sae.decode(sae.encode(x) + 1)
    torch.testing.assert_close(found["sparse"], found["dense"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x).detach(), found["dense"][0])


def test_a_bad_token_stays_visible_on_the_sparse_path(take):
    sae = build(normalize_activations="none")
    x = torch.randn(4, D_IN)
    take("sparse", sae)
    with torch.no_grad():
        clean = sae(x)
        x[2, 3] = torch.nan
        out = sae(x)
    assert not out[2].isfinite().any()
    assert torch.equal(out[[0, 1, 3]], clean[[0, 1, 3]])
    loss = step(sae, x).loss
    loss.backward()
    assert loss.isnan()
    assert not sae.W_dec.grad.isfinite().all()


def test_autocast_takes_the_matmuls_in_its_type():
    sae, dead = sae_with_dead_latents(normalize_activations="none")
    x = torch.randn(50, D_IN)
    found = []
    for hooked in (False, True):
        if hooked:
            sae.add_hook("hook_sae_acts_post", lambda acts, hook: acts)
        sae.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = step(sae, x, dead)
        out.loss.backward()
        assert out.hidden_pre.dtype == out.feature_acts.dtype == torch.bfloat16
        assert out.sae_out.dtype == torch.float32
        found.append({name: p.grad.clone() for name, p in sae.named_parameters()})
    for name in found[0]:
        assert found[0][name].dtype == torch.float32
        # Both round to bfloat16 (2^-8) at every matmul.
        assert (found[0][name] - found[1][name]).abs().max() <= 0.02 * found[1][name].abs().max(), name


def test_an_empty_batch_is_coded():
    out = step(build(normalize_activations="none"), torch.zeros(0, D_IN))
    assert out.feature_acts.shape == (0, D_SAE)
    assert out.sae_out.shape == (0, D_IN)


def test_the_encoder_alone_can_be_differentiated_twice():
    sae = build(dtype="float64", normalize_activations="none")
    x = torch.randn(3, D_IN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, D_SAE, dtype=torch.float64)

    def acts(x: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
        parameters = {"b_dec": b_dec, "W_enc": W_enc, "W_dec": sae.W_dec}
        return torch.func.functional_call(Encoder(sae), {f"sae.{k}": v for k, v in parameters.items()}, x) * weight

    class Encoder(torch.nn.Module):
        def __init__(self, sae: TopAFATrainingSAE) -> None:
            super().__init__()
            self.sae = sae

        def forward(self, x: Tensor) -> Tensor:
            return self.sae.encode(x)

    assert torch.autograd.gradgradcheck(acts, (x, sae.b_dec, sae.W_enc), fast_mode=True)


def test_another_module_in_place_of_a_hook_point_is_called():
    sae = build(normalize_activations="none")

    class Doubled(torch.nn.Module):
        def forward(self, acts: Tensor) -> Tensor:
            return 2 * acts

    x = torch.randn(5, D_IN)
    plain = step(sae, x).feature_acts
    sae.hook_sae_acts_post = Doubled()
    assert torch.equal(step(sae, x).feature_acts, 2 * plain)


def test_a_second_derivative_is_refused_in_one_clear_error():
    sae = build()
    out = step(sae, torch.randn(3, D_IN))
    (grad,) = torch.autograd.grad(out.loss, sae.W_enc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
