"""aux_zipf_loss beside SAELens' loss for dead features, and which features count as under-used."""

from __future__ import annotations

import choice_reference as reference
import pytest
import torch
from choice_helpers import D_IN, D_SAE, build, step, train
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE

from sae_lens_afa.saes.aux_zipf import aux_zipf_loss
from sae_lens_afa.saes.zipf import ZipfLaw, expected_densities

# ---- the loss


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["topk", "batchtopk"]), st.booleans(), st.floats(0.01, 3))
def test_with_no_dying_fraction_the_loss_is_saelens(data, architecture, rescale, coefficient):
    d_in, d_sae = data.draw(st.integers(2, 20)), data.draw(st.integers(2, 60))
    settings = {
        "d_in": d_in, "d_sae": d_sae, "k": 2, "aux_loss_coefficient": coefficient,
        "rescale_acts_by_decoder_norm": rescale, "dtype": "float64",
    }  # fmt: skip
    theirs = (
        TopKTrainingSAE(TopKTrainingSAEConfig(**settings))
        if architecture == "topk"
        else BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**settings))
    )
    ours = build("mutual_choice", dying_fraction=0.0, **settings)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    theirs.W_enc.data.normal_()
    theirs.W_dec.data.normal_()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(data.draw(st.integers(2, 9)), d_in, dtype=torch.float64)
    dead = torch.rand(d_sae) < data.draw(st.sampled_from([0.0, 0.2, 0.9, 1.0]))
    # From the same activations, so that which features were selected makes no difference.
    acts, hidden_pre = (t.detach().requires_grad_() for t in theirs.encode_with_hidden_pre(x))
    losses = []
    for sae in (theirs, ours):
        step_input = TrainStepInput(x, {}, dead, n_training_steps=500, is_logging_step=False)
        (loss,) = sae.calculate_aux_loss(step_input, acts, hidden_pre, sae.decode(acts)).values()
        gradients = torch.autograd.grad(loss, [sae.W_dec, hidden_pre]) if loss.requires_grad else ()
        losses.append((loss, *gradients))
    # The same sums in another order: rounding of float64 is all that may differ.
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("k_aux", [1, 5, 50])
def test_the_loss_is_its_definition(k_aux):
    hidden_pre, residual, W_dec = torch.randn(6, 30), torch.randn(6, 8), torch.randn(30, 8)
    under_used = torch.rand(30) < 0.5
    found = aux_zipf_loss(under_used, hidden_pre, residual, W_dec, coefficient=0.5, k_aux=k_aux)
    expected = 0.5 * reference.aux_zipf_loss(under_used, hidden_pre, residual, W_dec, k_aux)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_without_under_used_features_there_is_no_loss():
    args = torch.randn(6, 30), torch.randn(6, 8), torch.randn(30, 8)
    assert aux_zipf_loss(None, *args, coefficient=1.0) == 0
    assert aux_zipf_loss(torch.zeros(30, dtype=torch.bool), *args, coefficient=1.0) == 0
    assert aux_zipf_loss(torch.ones(30, dtype=torch.bool), *args, coefficient=0.0) == 0


def test_under_layer_norm_the_loss_is_that_of_the_normalised_space_in_raw_units():
    sae = build("mutual_choice", normalize_activations="layer_norm")
    x = torch.randn(9, D_IN) * 5 + 2
    dead = torch.arange(D_SAE) % 2 == 0
    out = step(sae, x, dead=dead)
    std = x.std(-1, keepdim=True)
    aux = torch.zeros(9, D_SAE)
    for token, acts in enumerate(out.hidden_pre.detach()):
        top = torch.where(dead, acts, -torch.inf).topk(D_IN // 2).indices
        aux[token, top] = acts[top]
    recons = std * ((aux / sae.W_dec.norm(dim=-1)) @ sae.W_dec)
    expected = (recons - (x - out.sae_out)).square().sum(-1).mean()
    torch.testing.assert_close(out.losses["auxiliary_reconstruction_loss"], expected)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in sae.parameters())


# ---- under-used features


def test_features_far_below_their_expected_density_are_under_used():
    sae = build("mutual_choice", dying_fraction=0.5)
    expected = expected_densities(ZipfLaw(1.0, 2.0), D_SAE, 4.0).float()
    order = torch.randperm(D_SAE)
    sae.density[order] = expected
    sae.density[order[30]] *= 0.9
    sae.density[order[39]] *= 0.3
    sae.set_law(ZipfLaw(1.0, 2.0), 4.0)
    dead = torch.arange(D_SAE) == order[0]
    assert sae.under_used(None).nonzero().flatten().tolist() == [order[39]]
    assert sae.under_used(dead).nonzero().flatten().tolist() == [order[39]]
    assert not sae.under_used(torch.arange(D_SAE) == order[39]).any()


def test_before_a_law_is_fitted_and_without_a_fraction_none_are():
    sae = build("mutual_choice", dying_fraction=0.5)
    assert sae.under_used(None) is None
    sae = build("mutual_choice", dying_fraction=0.0)
    sae.set_law(ZipfLaw(1.0), 4.0)
    assert sae.under_used(torch.arange(D_SAE) == 3) is None


def test_dead_and_under_used_features_each_have_their_loss():
    sae = build("mutual_choice", dying_fraction=0.5, k=2.5, aux_loss_coefficient=0.7)
    sae.set_law(ZipfLaw(0.0), 2.5)
    sae.density.fill_(2.5 / D_SAE)
    sae.density[:12] = 0.001
    dead = torch.arange(D_SAE) < 4
    out = step(sae, torch.randn(30, D_IN), dead=dead)
    assert out.metrics["under_used_features"] == 8
    residual, W_dec = (out.sae_in - out.sae_out).detach(), sae.W_dec.detach()
    acts = (out.hidden_pre / sae.W_dec.norm(dim=-1)).detach()  # rows have one norm: the order is the same
    rare = (torch.arange(D_SAE) < 12) & ~dead
    expected = reference.aux_zipf_loss(dead, acts, residual, W_dec, D_IN // 2)
    expected += reference.aux_zipf_loss(rare, acts, residual, W_dec, 3)
    assert out.losses["auxiliary_reconstruction_loss"].item() == pytest.approx(0.7 * expected, rel=1e-4)


def test_under_used_features_get_a_gradient():
    sae = build("mutual_choice", dying_fraction=0.5)
    sae.b_enc.data[:5] = -100  # never matched
    sae.set_law(ZipfLaw(0.0), 4.0)
    sae.density.fill_(0.1)
    sae.density[:5] = 0.01
    out = step(sae, torch.randn(30, D_IN))
    assert out.metrics["under_used_features"] == 5
    out.loss.backward()
    assert (sae.b_enc.grad[:5] != 0).any()


# ---- what is tracked


def test_densities_are_a_mean_at_first_and_exponential_later():
    sae = build("mutual_choice", density_lr=0.25)
    expected = torch.zeros(D_SAE)
    for at in range(9):
        out = step(sae, torch.randn(20, D_IN), at)
        expected += max(0.25, 1 / (at + 1)) * ((out.feature_acts > 0).float().mean(0) - expected)
        torch.testing.assert_close(sae.density, expected)
    assert sae.n_batches_observed == 9


def test_the_law_is_fitted_every_so_many_steps():
    sae = build("mutual_choice", density_lr=0.25)
    batches = [torch.randn(20, D_IN) for _ in range(5)]
    train(sae, batches[:4])
    assert sae.zipf_law.isnan().all()
    density = sae.density.clone()
    out = train(sae, batches[4:], start=4)
    assert not sae.zipf_law.isnan().any()
    torch.testing.assert_close(sae.zipf_law[2], density.sum())
    assert out.metrics["zipf_exponent"] == sae.zipf_law[0]


def test_features_that_do_not_fire_are_no_error_for_the_law():
    sae = build("mutual_choice", density_lr=1.0)
    sae.b_enc.data.fill_(-100)
    out = train(sae, [torch.randn(20, D_IN) for _ in range(3)])
    assert out.metrics["unused_matches"] == 80
    assert sae.zipf_law.isnan().all()


def test_a_cast_leaves_what_is_tracked_in_its_precision():
    sae = build("feature_choice")
    train(sae, [torch.randn(20, D_IN)])
    before = {name: buffer.clone() for name, buffer in sae.named_buffers()}
    sae.to(dtype=torch.bfloat16)
    assert sae.W_enc.dtype == torch.bfloat16
    for name, buffer in sae.named_buffers():
        assert torch.equal(buffer, before[name]), name
