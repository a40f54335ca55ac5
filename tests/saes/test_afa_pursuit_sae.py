"""afa_pursuit as an SAE: its step against autograd, its weighed loss, its start, folds, and what is saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput
from small_saes import to_inference
from step_paths import PATHS, take
from torch import Tensor

from sae_lens_afa import (
    AFAPursuitSAE,
    AFAPursuitSAEConfig,
    AFAPursuitTrainingSAE,
    AFAPursuitTrainingSAEConfig,
)
from sae_lens_afa.functional import universal_ratio

__all__ = ["take"]  # a fixture

D_IN, D_SAE = 16, 48


def build(**overrides: Any) -> AFAPursuitTrainingSAE:
    cfg = AFAPursuitTrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, "threshold_scale": 0.6, **overrides})
    sae = AFAPursuitTrainingSAE(cfg)
    sae.b_dec.data.normal_(std=0.1)
    return sae


def step(
    sae: AFAPursuitTrainingSAE, x: Tensor, *, progress: float = 1.0, n: int = 1, dead: Tensor | None = None
) -> Any:
    return sae.training_forward_pass(TrainStepInput(x, {"threshold": progress}, dead, n, True))


# ---- configuration


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold_scale", -1.0, "must be a finite number"),
        ("norm_floor", 1.5, "must be at most 1"),
        ("weak_selection", 0.0, "must be a finite number > 0"),
        ("weak_selection", 1.1, "must be at most 1"),
        ("max_stages", 0, "must be an integer >= 1"),
    ],
)
@pytest.mark.parametrize("config", [AFAPursuitSAEConfig, AFAPursuitTrainingSAEConfig])
def test_a_value_outside_its_range_is_named(config, field, value, message):
    with pytest.raises(ValueError, match=rf"{config.__name__}\.{field} {message}"):
        config(d_in=D_IN, d_sae=D_SAE, **{field: value})


# ---- the step


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(30,), (5, 6)])
def test_loss_and_gradients_are_those_of_constant_codes(path, shape, take):
    sae, x = build(), torch.randn(*shape, D_IN)
    with torch.no_grad():
        f = sae.encode(x)
    recons = f @ sae.W_dec + sae.b_dec
    expected = ((recons - x).square().sum(-1) / x.var(-1)).mean()
    # b_dec is in the fit, too, whose gradient by way of the code is zero.
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    take(path, sae)
    out = step(sae, x)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected)
    assert (out.feature_acts > 0).any()
    for name, p in sae.named_parameters():
        # Fits are precise to 1e-5 of their tokens.
        assert (p.grad - gradients[name]).abs().max() <= 1e-3 * gradients[name].abs().max(), name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("of", ["code", "reconstruction"])
def test_any_other_loss_has_its_whole_gradient(path, of, take):
    sae, x = build(dtype="float64"), torch.randn(20, D_IN, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, D_SAE if of == "code" else D_IN, dtype=torch.float64)
    code = sae.encode(x)
    through = code if of == "code" else sae.decode(code)
    wanted = [x, sae.W_dec, sae.b_dec]
    expected = torch.autograd.grad((through * weight).sum(), wanted)
    take(path, sae)
    out = step(sae, x)
    found = torch.autograd.grad(((out.feature_acts if of == "code" else out.sae_out) * weight).sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_weighing_tokens_is_training_on_standardised_ones():
    # Where tokens have mean 0 and nothing is subtracted, a token's code scales with it: the weighed loss and its
    # gradient are those of the standardised tokens.
    x = torch.randn(40, D_IN) * torch.logspace(-1, 1, 40)[:, None]
    x = x - x.mean(-1, keepdim=True)
    sae = build()
    sae.b_dec.data.zero_()
    out = step(sae, x)
    out.loss.backward()
    gradient, _ = sae.W_dec.grad.clone(), sae.zero_grad()
    standardised = step(sae, x / x.std(-1, keepdim=True))
    standardised.loss.backward()
    torch.testing.assert_close(out.loss, standardised.loss)
    torch.testing.assert_close(sae.W_dec.grad, gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        out.feature_acts / x.std(-1, keepdim=True), standardised.feature_acts, rtol=1e-3, atol=1e-4
    )


def test_tokens_of_padding_have_no_part_in_the_loss():
    sae, x = build(), torch.randn(10, D_IN)
    alone = step(sae, x).loss
    padded = step(sae, torch.cat([x, torch.zeros(10, D_IN)])).loss
    torch.testing.assert_close(2 * padded, alone)


def test_codes_under_autocast_are_those_without():
    sae, x = build(), torch.randn(50, D_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, out = sae.encode(x), step(sae, x)
    assert torch.equal(found > 0, sae.encode(x) > 0)
    assert torch.equal(out.feature_acts > 0, found > 0)
    out.loss.backward()
    assert sae.W_dec.grad.isfinite().all()


# ---- start, reseeding


def test_a_run_starts_from_its_first_batch_and_a_trained_sae_stays_as_it_is():
    x = 5 + torch.randn(500, D_IN) * torch.linspace(0.1, 10, 500)[:, None]
    sae = build()
    sae.b_dec.data.zero_()
    step(sae, x, n=0)
    weight = 1 / x.var(-1, keepdim=True)
    torch.testing.assert_close(sae.b_dec.data, (weight * x).sum(0) / weight.sum())
    torch.testing.assert_close(sae.typical_norm, (x - sae.b_dec).norm(dim=-1).mean())
    before = copy.deepcopy(sae.state_dict())
    step(sae, 3 * x, n=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


def test_the_dictionary_grows_to_its_size_in_the_directions_of_what_is_lacking():
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1)
    sae = build(growth_steps=80, threshold_scale=1.0)
    sae.b_dec.data.zero_()
    sizes = []
    for n in range(160):
        x = directions[torch.randint(D_SAE, (256,))] * (0.5 + torch.rand(256, 1))
        with torch.no_grad():
            out = step(sae, x, n=n)
        born = (sae.W_dec != 0).any(-1)
        sizes.append(int(born.sum()))
        assert not out.feature_acts[:, ~born].any()
    assert sizes[0] == D_SAE // 16
    assert sizes == sorted(sizes)
    assert sizes[40] <= D_SAE * (1 / 16 + 15 / 16 / 2) + 1
    torch.testing.assert_close(sae.W_dec[born].norm(dim=-1), torch.ones(sizes[-1]))
    # One feature a token: each new latent took one that none stood for, until what is lacking stands out no more.
    assert ((sae.W_dec @ directions.T).amax(0) > 0.7).double().mean() > 0.9


def test_a_run_that_goes_on_grows_on():
    x = torch.randn(256, D_IN)
    sae = build(growth_steps=40)
    sae.b_dec.data.zero_()
    for n in range(20):
        step(sae, x, n=n)
    twin = build(growth_steps=40)
    twin.load_state_dict(sae.state_dict())
    for n in range(20, 60):
        torch.manual_seed(n)
        step(sae, x, n=n)
        torch.manual_seed(n)
        step(twin, x, n=n)
    assert torch.equal(sae.W_dec, twin.W_dec)


def test_a_bad_token_does_not_spoil_the_start():
    x = torch.randn(50, D_IN)
    x[3, 2] = torch.nan
    sae = build()
    sae.b_dec.data.zero_()
    step(sae, x, n=0)
    assert sae.b_dec.isfinite().all()
    assert sae.typical_norm > 0


def test_dead_latents_take_what_is_lacking():
    sae = build(reseed_steps=10, growth_steps=0)
    sae.b_dec.data.zero_()
    dead = torch.arange(D_SAE) < D_SAE - 4
    sae.W_dec.data[dead] = 0
    sae.W_dec.data[~dead] = torch.eye(D_IN)[:4]
    lost = torch.eye(D_IN)[5]
    step(sae, torch.rand(64, 1).add(0.5) * lost, n=10, dead=dead)
    assert ((sae.W_dec[dead] @ lost) > 0.999).sum() == 1


def test_a_dictionary_does_not_start_as_the_features_of_a_world_of_the_same_seed():
    torch.manual_seed(3)
    features = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1)
    torch.manual_seed(3)
    sae = build()
    assert (sae.W_dec * features).sum(-1).abs().mean() < 0.4
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


# ---- folds, saving, hooks


def test_only_the_dictionary_the_bias_and_the_typical_norm_are_saved(tmp_path):
    sae = build()
    step(sae, torch.randn(30, D_IN), n=0)
    loaded = to_inference(sae, tmp_path)
    assert isinstance(loaded, AFAPursuitSAE)
    assert set(loaded.state_dict()) == {"W_dec", "b_dec", "typical_norm"}
    assert loaded.typical_norm == sae.typical_norm > 0
    assert torch.equal(loaded.W_enc, loaded.W_dec.T)
    state = loaded.state_dict()
    del state["typical_norm"]
    with pytest.raises(ValueError, match=r"no tensor 'typical_norm'"):
        loaded.process_state_dict_for_loading(state)


@pytest.mark.parametrize("inference", [False, True])
def test_folds_change_no_reconstruction(tmp_path, inference):
    sae: SAE = to_inference(build(), tmp_path) if inference else build()
    sae.typical_norm.fill_(2.0)
    x = torch.randn(40, D_IN)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        codes, recons = sae.encode(x), sae(x)
        norms = sae.W_dec.norm(dim=-1)
        sae.fold_W_dec_norm()
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
        torch.testing.assert_close(sae.encode(x), codes * norms, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(sae(x), recons, rtol=1e-3, atol=1e-4)
        scaled = sae(4 * x)
        code = sae.encode(4 * x)
        sae.fold_activation_norm_scaling_factor(4.0)
        torch.testing.assert_close(sae.encode(x), code, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(sae(x), scaled / 4, rtol=1e-3, atol=1e-4)


def test_pre_activations_say_which_features_join_first():
    sae, x = build(), torch.randn(20, D_IN)
    plain = sae.encode(x)

    def without_the_first(pre: Tensor, hook: Any) -> Tensor:
        pre[..., 0] = -1.0
        return pre

    seen = {}
    sae.add_hook("hook_sae_acts_pre", lambda pre, hook: seen.update(pre=pre))
    out = step(sae, x)
    torch.testing.assert_close(seen["pre"], (x - sae.b_dec) @ sae.W_dec.T)
    torch.testing.assert_close(out.feature_acts, plain, rtol=1e-3, atol=1e-4)
    sae.reset_hooks()
    sae.cfg.max_stages = 1
    first = (sae.encode(x)[:, 0] > 0).any()
    sae.add_hook("hook_sae_acts_pre", without_the_first)
    assert not (sae.encode(x)[:, 0] > 0).any() or not first


def test_one_stage_chooses_as_afa_threshold_does_where_weak_selection_is_no_bound():
    sae, x = build(max_stages=1, weak_selection=1e-6), torch.randn(60, D_IN)
    z = x - sae.b_dec
    above = z @ sae.W_dec.T > universal_ratio(D_IN, D_SAE, 0.6) * z.norm(dim=-1, keepdim=True)
    codes = sae.encode(x)
    assert not (codes > 0)[~above].any()
    # The fit drops what it would make negative; the rest is what afa_threshold keeps.
    assert ((codes > 0) == above).float().mean() > 0.95
