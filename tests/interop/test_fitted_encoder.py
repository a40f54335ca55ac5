"""An encoder fitted to a dictionary that has none: what it keeps, how good it is, who can load it."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE

from sae_lens_afa import AFAPursuitSAE, AFAPursuitSAEConfig, AFAPursuitTrainingSAE, AFAPursuitTrainingSAEConfig
from sae_lens_afa.interop import export_jumprelu, jumprelu_report

D_IN, D_SAE = 24, 40


def pursuit(**settings) -> AFAPursuitSAE:
    sae = AFAPursuitSAE(AFAPursuitSAEConfig(D_IN, D_SAE, threshold_scale=0.7, **settings))
    sae.b_dec.data = 0.2 * torch.randn(D_IN)
    return sae


def tokens(sae: AFAPursuitSAE, n: int = 3000) -> torch.Tensor:
    """Tokens of one to three of its features, and a little noise."""
    codes = (torch.rand(n, D_SAE) < 2 / D_SAE) * (1 + torch.rand(n, D_SAE))
    return codes @ sae.W_dec.data + sae.b_dec.data + 0.05 * torch.randn(n, D_IN)


def test_it_reconstructs_with_the_same_dictionary_by_as_many_features():
    sae = pursuit()
    x = tokens(sae)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    export = export_jumprelu(sae, x)
    report = jumprelu_report(export)
    assert type(export) is JumpReLUSAE
    assert torch.equal(export.W_dec, sae.W_dec)
    assert torch.equal(export.b_dec, sae.b_dec)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
    assert (report.encoder, report.thresholds, report.held_out) == ("fitted", "global", True)
    assert report.l0_export == pytest.approx(report.l0_original, rel=0.15)
    assert report.explained_variance_original > 0.95
    assert report.explained_variance_export > 0.85
    # The decoder's transpose with the same number of features explains less: the encoder has learnt.
    assert report.explained_variance_export > _explained_by_the_transpose(sae, x, report.l0_original) + 0.05
    assert "an encoder fitted to its dictionary" in str(report)


def _explained_by_the_transpose(sae: AFAPursuitSAE, x: torch.Tensor, l0: float) -> float:
    z = x - sae.b_dec.data
    along = z @ sae.W_dec.data.T
    least = along.flatten().topk(round(l0 * len(x))).values.min()
    rest = z - torch.where(along >= least, along, 0) @ sae.W_dec.data
    return 1 - float(rest.square().sum() / (z - z.mean(0)).square().sum())


def test_it_loads_as_any_jumprelu_sae_and_is_the_same_every_time(tmp_path):
    sae = pursuit()
    x = tokens(sae, 1000)
    export = export_jumprelu(sae, x)
    torch.manual_seed(7)
    again = export_jumprelu(sae, x)
    assert all(torch.equal(a, b) for a, b in zip(export.parameters(), again.parameters(), strict=True))
    export.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert torch.equal(loaded.encode(x), export.encode(x))
    assert jumprelu_report(loaded) == jumprelu_report(export)


def test_norms_of_decoder_rows_are_made_up_for():
    sae = pursuit()
    x = tokens(sae, 1000)
    scaled = pursuit()
    factors = 0.5 + torch.rand(D_SAE)
    scaled.load_state_dict({**sae.state_dict(), "W_dec": factors[:, None] * sae.W_dec.data})
    acts, of_scaled = export_jumprelu(sae, x).encode(x), export_jumprelu(scaled, x).encode(x)
    # Adam's steps do not scale with the rows, so codes are alike and not equal.
    alike = ((acts > 0) & (of_scaled > 0)).sum() / ((acts > 0) | (of_scaled > 0)).sum()
    assert alike > 0.8
    report = jumprelu_report(export_jumprelu(scaled, x))
    assert report.explained_variance_export > 0.8


@pytest.mark.parametrize("settings", [{"normalize_activations": "layer_norm"}, {"dtype": "bfloat16"}])
def test_other_settings_carry_over(settings):
    sae = pursuit(**settings)
    x = tokens(sae.float() if "dtype" in settings else sae, 1000)
    if "dtype" in settings:
        sae = sae.to(torch.bfloat16)
    export = export_jumprelu(sae, x)
    assert export.cfg.normalize_activations == sae.cfg.normalize_activations
    assert export.dtype == sae.dtype
    assert jumprelu_report(export).explained_variance_export > 0.6


def test_a_training_sae_is_exported_as_it_would_be_saved():
    trained = AFAPursuitTrainingSAE(AFAPursuitTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, threshold_scale=0.7))
    sae = pursuit()
    trained.load_state_dict(sae.state_dict())
    x = tokens(sae, 800)
    assert torch.equal(export_jumprelu(trained, x).W_enc, export_jumprelu(sae, x).W_enc)


def test_silence_stays_silent():
    sae = pursuit()
    sae.b_dec.data.zero_()
    export = export_jumprelu(sae, torch.zeros(700, D_IN))
    assert all(torch.isfinite(p).all() for p in export.parameters())
    assert torch.count_nonzero(export.encode(torch.zeros(5, D_IN))) == 0
