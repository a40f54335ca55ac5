"""top-AFA with aux_zipf_loss: latents that fire too rarely reconstruct the residual beside the dead ones."""

import math

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from top_afa_helpers import D_SAE, build, to_inference

from sae_lens_afa import TopAFATrainingSAEConfig
from sae_lens_afa.saes.zipf import ZipfLaw

WEIGHTS = {"W_enc", "W_dec", "b_dec"}
TRACKED = {"density", "n_batches_observed", "zipf_law"}


def run(sae, x, dead=None, at=0):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients={"afa": 1 / 32}, dead_neuron_mask=dead, n_training_steps=at, is_logging_step=False
        )
    )


def with_a_law(**overrides):
    """An SAE whose densities and law say that latents 3 and 7 fire far too rarely."""
    sae = build(dying_fraction=0.5, **overrides).train()
    sae.density.copy_(torch.linspace(0.5, 0.1, D_SAE))
    sae.density[[3, 7]] = 1e-4
    sae.n_batches_observed.fill_(5)
    sae.set_law(ZipfLaw(0.5, 3.0))
    return sae


def test_without_it_there_is_no_further_state():
    assert set(build().state_dict()) == WEIGHTS
    assert set(build(dying_fraction=0.1).state_dict()) == WEIGHTS | TRACKED


def test_the_loss_is_the_mean_squared_error_of_their_reconstruction():
    sae = with_a_law()
    x = torch.randn(64, 12)
    under_used = sae.under_used(None)
    index = under_used.nonzero().squeeze(-1)
    assert {3, 7} <= set(index.tolist())
    k = math.ceil(float(sae.density.sum()))
    normed = sae.normalized_input(x)
    acts, pre = sae.encode_with_hidden_pre(x)
    residual = (normed - acts @ sae.W_dec - sae.b_dec).detach()
    errors = []
    for row, left in zip(pre, residual, strict=True):
        chosen = sorted(index.tolist(), key=lambda i: -float(row[i].relu()))[:k]
        errors.append((sum(row[i].relu() * sae.W_dec[i] for i in chosen) - left).square().mean())
    expected = sae.cfg.d_in / 32 * torch.stack(errors).mean()
    found = run(sae, x).losses["auxiliary_reconstruction_loss"]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert sae.W_dec.grad[index].abs().sum() > 0


def test_dead_latents_keep_their_own_loss():
    x = torch.randn(64, 12)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    torch.manual_seed(1)
    plain = build()
    plain.W_enc.data[:, 5] = 0.0
    dead[5] = True
    torch.manual_seed(1)
    sae = build(dying_fraction=0.5)  # no law yet: nothing counts as under-used
    sae.W_enc.data[:, 5] = 0.0
    losses = [run(each, x, dead).losses["auxiliary_reconstruction_loss"] for each in (plain, sae)]
    assert losses[0] > 0
    assert torch.equal(*losses)


def test_densities_and_the_law_are_tracked_in_training_only():
    sae = build(dying_fraction=0.1, density_lr=0.5).train()
    x = torch.randn(256, 12)
    acts = run(sae, x).feature_acts
    torch.testing.assert_close(sae.density, (acts > 0).float().mean(0))
    assert torch.isnan(sae.zipf_law).all()
    run(sae, x, at=2)
    assert torch.isfinite(sae.zipf_law).all(), "fitted every 1 / density_lr steps"
    before = sae.density.clone()
    sae.eval()
    run(sae, -x)
    assert torch.equal(sae.density, before)


def test_saved_for_inference_without_its_state_and_resumed_with_it(tmp_path):
    sae = with_a_law()
    assert set(to_inference(sae, tmp_path / "inference").state_dict()) == WEIGHTS
    sae.save_model(tmp_path / "checkpoint")
    again = TrainingSAE.load_from_disk(tmp_path / "checkpoint")
    assert torch.equal(again.density, sae.density)
    assert torch.equal(again.under_used(None), sae.under_used(None))
    other = build(dying_fraction=0.5)
    other.load_weights_from_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(other.zipf_law, sae.zipf_law)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("dying_fraction", -0.1, ">= 0"), ("dying_fraction", 1.5, "at most 1"), ("density_lr", 0, "> 0")],
)
def test_values_outside_their_range(field, value, says):
    with pytest.raises(ValueError, match=rf"{field} must be .*{says}"):
        TopAFATrainingSAEConfig(d_in=4, d_sae=8, **{field: value})
