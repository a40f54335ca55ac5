"""afa_threshold as a SAELens architecture: its rule, its invariances, configuration, saving and folding."""

from __future__ import annotations

from itertools import pairwise

import pytest
import reference
import torch
from afa_threshold_helpers import D_IN, D_SAE, build, step, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from top_afa_helpers import to_inference
from torch import Tensor

from sae_lens_afa import (
    AFAThresholdSAE,
    AFAThresholdSAEConfig,
    AFAThresholdTrainingSAE,
    AFAThresholdTrainingSAEConfig,
    evaluate_activations,
    export_jumprelu,
    jumprelu_report,
)


def distance(sae: SAE, x: Tensor) -> Tensor:
    """How far each pre-activation is from its threshold, as a share of it, [..., d_sae]."""
    centered = (x - sae.b_dec).detach()
    threshold = reference.universal_threshold(centered, sae.cfg.d_sae, sae.cfg.threshold_scale)[..., None]
    return ((centered.double() @ sae.W_enc.detach().double()) * sae.W_dec.detach().norm(dim=-1) / threshold - 1).abs()


# ---- configuration


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"d_in": 0}, "d_in must be an integer >= 1, got 0"),
        ({"apply_b_dec_to_input": False}, "apply_b_dec_to_input must be True, got False"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations='covariance_whitening' is not"),
        ({"threshold_scale": 0.0}, "threshold_scale must be a finite number > 0, got 0.0"),
        ({"threshold_start": -0.1}, "threshold_start must be a finite number >= 0, got -0.1"),
        ({"threshold_start": 1.1}, "threshold_start must be at most 1, got 1.1"),
        ({"reseed_steps": -1}, "reseed_steps must be an integer >= 0, got -1"),
        ({"threshold_warm_up_steps": 0.5}, "threshold_warm_up_steps must be an integer >= 0, got 0.5"),
        ({"decoder_init_norm": 0.1}, "decoder_init_norm must be None or 1, got 0.1"),
    ],
)
def test_a_bad_config_value_names_its_field_and_what_was_expected(given_, expected):
    with pytest.raises(ValueError, match=rf"AFAThresholdTrainingSAEConfig\.{expected}"):
        AFAThresholdTrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, **given_})


@pytest.mark.parametrize(("field", "value"), [("d_sae", 0), ("apply_b_dec_to_input", False), ("threshold_scale", -1.0)])
def test_the_inference_config_is_checked_too(field, value):
    with pytest.raises(ValueError, match=rf"AFAThresholdSAEConfig\.{field}"):
        AFAThresholdSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, field: value})


# ---- encoding


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from(["none", "layer_norm"]),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.integers(0, 2**31),
)
def test_encoding_follows_the_rule_for_any_leading_shape(shape, normalize, scale, seed):
    torch.manual_seed(seed)
    sae = build(normalize_activations=normalize, threshold_scale=scale)
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    x = torch.randn(*shape, D_IN) * 3
    acts, hidden_pre = sae.encode_with_hidden_pre(x)
    z = x
    if normalize == "layer_norm":
        z = x - x.mean(-1, keepdim=True)
        z = z / (z.std(-1, keepdim=True) + 1e-5)
    centered = (z - sae.b_dec).detach()
    assert torch.equal(hidden_pre, centered @ sae.W_enc)
    threshold = reference.universal_threshold(centered, D_SAE, scale)
    norms = sae.W_dec.detach().norm(dim=-1)
    assert torch.equal(acts, reference.above_threshold(hidden_pre.detach(), threshold, norms))
    assert torch.equal(sae.encode(x), acts)


def test_the_test_data_has_both_active_and_inactive_features():
    share = (build().encode(tokens(200)) > 0).float().mean()
    assert 0.01 < share < 0.5


@settings(max_examples=40)
@given(st.integers(-40, 40))
def test_scaling_by_a_power_of_two_scales_the_code_exactly(exponent):
    torch.manual_seed(0)
    sae, x, factor = build(), tokens(30), 2.0**exponent
    acts, recons = sae.encode(x), sae(x)
    sae.b_dec.data *= factor
    assert torch.equal(sae.encode(factor * x), factor * acts)
    assert torch.equal(sae(factor * x), factor * recons)


@settings(max_examples=40)
@given(st.floats(1e-3, 1e3))
def test_scaling_the_input_scales_the_code(factor):
    torch.manual_seed(0)
    sae, x = build(), tokens(30)
    acts, decided = sae.encode(x), distance(sae, x) > 1e-5
    sae.b_dec.data *= factor
    scaled = sae.encode(factor * x)
    assert torch.equal((scaled > 0)[decided], (acts > 0)[decided])
    # Products of 24 terms in float32, some of which cancel.
    torch.testing.assert_close(scaled[decided], factor * acts[decided], rtol=1e-5, atol=1e-5 * factor)


def test_rescaling_decoder_rows_into_the_encoder_changes_no_output():
    sae, x = build(), tokens(50)
    before, active = sae(x), sae.encode(x) > 0
    factor = torch.exp2(torch.randint(-3, 4, (D_SAE,)).float())
    sae.W_dec.data *= factor[:, None]
    sae.W_enc.data /= factor
    assert torch.equal(sae.encode(x) > 0, active)
    assert torch.equal(sae(x), before)


@settings(max_examples=40)
@given(st.permutations(range(D_SAE)))
def test_permuting_features_permutes_the_code(order):
    torch.manual_seed(0)
    sae, x = build(), tokens(20)
    acts, decided = sae.encode(x)[:, order], (distance(sae, x) > 1e-5)[:, order]
    sae.W_enc.data, sae.W_dec.data = sae.W_enc.data[:, order].contiguous(), sae.W_dec.data[order].contiguous()
    torch.testing.assert_close(sae.encode(x)[decided], acts[decided], rtol=1e-5, atol=1e-5)


def test_a_higher_scale_keeps_a_subset(tmp_path):
    x, active = tokens(50), []
    for scale in (0.3, 0.6, 1.0):
        torch.manual_seed(0)
        active.append(build(threshold_scale=scale).encode(x) > 0)
    for more, fewer in pairwise(active):
        assert not (fewer & ~more).any()
        assert fewer.sum() < more.sum()


def test_a_token_at_the_bias_has_an_empty_code():
    sae = build()
    x = sae.b_dec.detach().clone()[None].requires_grad_()
    out = step(sae, x)
    out.loss.backward()
    assert not out.feature_acts.any()
    assert torch.equal(out.sae_out, x)
    assert all(p.grad.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_token_stays_visible_and_leaves_the_others_alone(bad):
    sae, x = build(), tokens(4)
    clean = sae(x)
    x[2, 3] = bad
    out = sae(x)
    assert not out[2].isfinite().any()
    assert torch.equal(out[[0, 1, 3]], clean[[0, 1, 3]])


def test_with_one_feature_the_rule_is_a_relu(tmp_path):
    sae = build(d_sae=1)
    x = torch.randn(30, D_IN)
    out = step(sae, x, torch.ones(1, dtype=torch.bool), logging=True)
    out.loss.backward()
    assert torch.equal(out.feature_acts, out.hidden_pre.relu())
    assert to_inference(sae, tmp_path)(x).shape == (30, D_IN)


def test_zero_decoder_rows_are_never_active():
    sae = build()
    sae.W_dec.data[3] = 0
    sae.W_enc.data[:, 3] *= 100
    assert not sae.encode(tokens(50))[:, 3].any()


@pytest.mark.parametrize("call", ["encode", "forward", "training_forward_pass"])
def test_a_wrong_input_is_one_clear_error(call):
    sae, x = build(), torch.randn(3, D_IN + 1)
    with pytest.raises(ValueError, match=r"d_in = 24.*\[3, 25\]"):
        step(sae, x) if call == "training_forward_pass" else getattr(sae, call)(x)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)])
def test_hook_z_is_reshaped_back(shape):
    cfg = AFAThresholdSAEConfig(d_in=20, d_sae=30, reshape_activations="hook_z")
    cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae = AFAThresholdSAE(cfg)
    x = torch.randn(*shape[:-1], 4, 5)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (*shape[:-1], 30)


# ---- initialisation, saving, folding, exporting


def test_initial_rows_are_unit_and_tied():
    sae = AFAThresholdTrainingSAE(AFAThresholdTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert not sae.b_dec.any()
    assert set(dict(sae.named_parameters())) == {"W_enc", "W_dec", "b_dec"}


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_folding_decoder_norms_changes_no_output(tmp_path, kind):
    sae = build()
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    sae.W_dec.data[3] = 0
    sae = sae if kind == "training" else to_inference(sae, tmp_path)
    x = tokens(20)
    before, active, decided = sae(x), sae.encode(x) > 0, distance(sae, x) > 1e-5
    sae.fold_W_dec_norm()
    assert torch.equal((sae.encode(x) > 0)[decided], active[decided])
    torch.testing.assert_close(sae(x), before)


@pytest.mark.parametrize("factor", [0.25, 3.7])
def test_folding_the_activation_scale_changes_no_output(factor):
    sae = build(normalize_activations="expected_average_only_in")
    x = tokens(20)
    before, active = sae(factor * x) / factor, sae.encode(factor * x) > 0
    sae.fold_activation_norm_scaling_factor(factor)
    assert torch.equal(sae.encode(x) > 0, active)
    torch.testing.assert_close(sae(x), before)


def test_whitening_cannot_be_folded():
    with pytest.raises(NotImplementedError, match="afa_threshold cannot absorb a whitening"):
        build().fold_activation_whitening(torch.zeros(D_IN), torch.eye(D_IN), torch.eye(D_IN))


def test_it_can_be_exported_and_evaluated(tmp_path):
    sae = build()
    saved, x = to_inference(sae, tmp_path), tokens(2000)
    export, expected = export_jumprelu(sae, x), export_jumprelu(saved, x)
    assert torch.equal(export.threshold, expected.threshold)
    report = jumprelu_report(export)
    assert report.original_architecture == "afa_threshold"
    # On this data the threshold of a feature's tokens varies with their norms, so sets agree only in part.
    assert report.jaccard > 0.3
    result = evaluate_activations(sae, x)
    assert result.l0_mean == pytest.approx((sae.encode(x) > 0).sum(-1).double().mean().item())
