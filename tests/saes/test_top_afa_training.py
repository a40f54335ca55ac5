"""top_afa's losses, its decoder constraint, and its training step under autocast and torch.compile."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from sae_lens.saes.sae import TrainStepInput
from top_afa_helpers import D_IN, D_SAE, LossOnly, build, step, train
from torch import Tensor

from sae_lens_afa.functional import afa_loss

# ---- loss


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("detach", [True, False])
def test_losses_are_their_definitions(normalize, detach):
    sae = build(normalize_activations=normalize, loss_reduction="mean", k_aux=3, detach_aux_residual=detach)
    sae.W_enc.data *= 5  # so strong that not all are needed,
    sae.W_enc.data[:, ::3] *= 1e-3  # and a third too weak to be selected
    x = torch.randn(9, D_IN)
    dead = torch.arange(D_SAE) % 3 == 0
    out = step(sae, x, dead, afa=0.25)
    z = sae.run_time_activation_norm_fn_in(x)
    recons = out.feature_acts @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(out.losses["mse_loss"], (recons - z).square().mean())
    torch.testing.assert_close(out.losses["afa_loss"], 0.25 * afa_loss(out.feature_acts, z))
    truly_dead = dead & ~(out.feature_acts > 0).any(0)
    aux = torch.zeros(out.feature_acts.shape)
    for r, acts in enumerate(out.hidden_pre.detach().relu()):
        top = torch.where(truly_dead, acts, -1).topk(3).indices
        aux[r, top] = acts[top]
    expected = (aux @ sae.W_dec - (z - recons)).square().mean() / 32
    assert truly_dead.sum() > 3
    torch.testing.assert_close(out.losses["auxiliary_reconstruction_loss"], expected)
    torch.testing.assert_close(out.loss, torch.stack(list(out.losses.values())).sum())


def test_a_latent_that_fires_in_this_batch_is_not_dead():
    sae = build()
    out = step(sae, torch.randn(400, D_IN), torch.ones(D_SAE, dtype=torch.bool))
    assert (out.feature_acts > 0).any(0).all()
    assert out.losses["auxiliary_reconstruction_loss"] == 0


def test_dead_latents_get_a_gradient_from_the_auxiliary_loss():
    sae = build()
    x = torch.randn(30, D_IN)
    sae.W_enc.data *= 5  # so strong that not all are needed,
    sae.W_enc.data[:, :5] *= 1e-4  # and these too weak to be selected
    dead = torch.arange(D_SAE) < 5
    assert (step(sae, x).feature_acts[:, :5] == 0).all()
    with_dead = step(sae, x, dead)
    assert with_dead.losses["auxiliary_reconstruction_loss"] > 0
    with_dead.loss.backward()
    assert (sae.W_enc.grad[:, :5] != 0).any()


def test_sum_is_d_in_times_mean_with_the_same_coefficients():
    torch.manual_seed(1)
    mean = build(loss_reduction="mean")
    total = build(loss_reduction="sum")
    total.load_state_dict(mean.state_dict())
    x, dead = torch.randn(9, D_IN), torch.ones(D_SAE, dtype=torch.bool)
    a, b = step(mean, x, dead), step(total, x, dead)
    for name in a.losses:
        torch.testing.assert_close(b.losses[name], D_IN * a.losses[name])
    assert mean.get_coefficients() == total.get_coefficients()


def test_gradients_pass_gradcheck():
    sae = build(dtype="float64", loss_reduction="mean", detach_aux_residual=False)
    x = torch.randn(5, D_IN, dtype=torch.float64)
    dead = torch.arange(D_SAE) % 2 == 0

    def loss(W_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        return torch.func.functional_call(
            LossOnly(sae, dead), {"sae.W_enc": W_enc, "sae.W_dec": W_dec, "sae.b_dec": b_dec}, x
        )

    parameters = tuple(p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_dec))
    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


def test_metrics_come_on_logging_steps_only():
    sae = build()
    x = torch.randn(50, D_IN)
    assert step(sae, x).metrics == {}
    metrics = step(sae, x, logging=True).metrics
    assert set(metrics) == {"afa_norm_ratio", "afa_epsilon_lbo", "afa_frac_over_activated", "l0_std", "n_nonfinite"}
    acts, z = sae.encode(x), sae.run_time_activation_norm_fn_in(x)
    f = torch.cat([acts * sae.W_dec.norm(dim=-1), sae.b_dec.norm().expand(50, 1)], dim=-1).norm(dim=-1)
    torch.testing.assert_close(metrics["afa_norm_ratio"], (f / z.norm(dim=-1)).median())
    torch.testing.assert_close(metrics["afa_frac_over_activated"], (f > z.norm(dim=-1)).float().mean())
    torch.testing.assert_close(metrics["l0_std"], (acts > 0).sum(-1).float().std(correction=0))


# ---- decoder constraint


def test_a_fresh_sae_has_raw_gradients_and_its_rows_are_left_alone():
    sae = build()
    sae.W_dec.data *= 1.7
    before = sae.W_dec.detach().clone()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    assert torch.equal(sae.W_dec, before)
    assert ((sae.W_dec.grad * sae.W_dec).sum(-1).abs() > 1e-6).any()


def test_training_keeps_decoder_rows_at_norm_one_and_gradients_tangent():
    sae = build().train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
    train(sae, torch.randn(30, D_IN), 3, optimizer)
    out = step(sae, torch.randn(30, D_IN))
    out.loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    # Tangent to float32: 1e-6 of the gradient's own size.
    assert ((sae.W_dec.grad * sae.W_dec).sum(-1).abs() <= 1e-5 * sae.W_dec.grad.norm()).all()


def test_zero_rows_stay_zero():
    sae = build()
    sae.W_dec.data[4] = 0
    encoder = sae.W_enc.detach().clone()
    sae.train()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    assert (sae.W_dec[4] == 0).all()
    assert torch.equal(sae.W_enc[:, 4], encoder[:, 4])
    assert sae.W_dec.isfinite().all()


@pytest.mark.parametrize("factor", [0.13, 1.004, 7.0])
def test_a_folded_sae_is_renormalised_without_changing_its_outputs(factor):
    sae = build(normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(factor)
    x = torch.randn(20, D_IN)
    before = sae(x)
    sae.train()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(sae(x), before)


def test_switching_to_eval_and_back_does_not_change_training():
    sae = build().train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    train(sae, torch.randn(30, D_IN), 1, optimizer)
    before = sae.W_dec.detach().clone()
    sae.eval()
    sae.train()
    assert torch.equal(sae.W_dec, before)


def test_outside_training_mode_nothing_is_constrained():
    sae = build().train().eval()
    sae.W_dec.data *= 2
    step(sae, torch.randn(9, D_IN)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), 2 * torch.ones(D_SAE))


def test_the_constraint_survives_a_copy():
    sae = copy.deepcopy(build().train()).train()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    assert ((sae.W_dec.grad * sae.W_dec).sum(-1).abs() <= 1e-5 * sae.W_dec.grad.norm()).all()


def test_the_constraint_survives_assigned_weights():
    sae = build().train()
    sae.load_state_dict({k: v.clone() * 3 for k, v in sae.state_dict().items()}, assign=True)
    sae.train()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_the_constraint_can_be_left_out():
    sae = build(unit_norm_decoder=False).train()
    sae.W_dec.data *= 2
    step(sae, torch.randn(9, D_IN)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), 2 * torch.ones(D_SAE))


def test_a_checkpoint_continues_exactly(tmp_path):
    torch.manual_seed(3)
    x = torch.randn(40, D_IN)
    whole = build()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, x, 4, optimizer)
    whole.save_model(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    train(whole, x, 4, optimizer)
    resumed = build()
    other = torch.optim.Adam(resumed.parameters(), lr=0.01)
    other.load_state_dict(saved)
    resumed.load_weights_from_checkpoint(tmp_path)
    train(resumed, x, 4, other)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


# ---- precision and compilation


def test_under_autocast_the_selection_is_that_of_float32():
    sae = build(normalize_activations="none")
    x = torch.randn(20, D_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(sae, x, torch.ones(D_SAE, dtype=torch.bool))
        out.loss.backward()
    expected, near_tie = reference.norm_matching_topk(
        out.hidden_pre.detach(), (x - sae.b_dec).double().norm(dim=-1), sae.W_dec.detach().norm(dim=-1)
    )
    assert out.hidden_pre.dtype == torch.bfloat16
    assert ((out.feature_acts == expected).all(-1) | near_tie).all()
    assert out.loss.dtype == torch.float32


def test_a_compiled_step_is_the_same_step():
    sae = build().train()
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager")
    dead = torch.arange(D_SAE) % 3 == 0
    x = torch.randn(20, D_IN)
    plain = step(sae, x, dead)
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    out = compiled(
        TrainStepInput(
            sae_in=x, coefficients={"afa": 1 / 32}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )
    out.loss.backward()
    assert torch.equal(out.feature_acts, plain.feature_acts)
    for name, p in sae.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
