"""top_afa as a SAELens architecture: what SAELens' own suite asks of `topk` and `batchtopk`, asked of ours."""

from __future__ import annotations

import json

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE
from top_afa_helpers import D_IN, D_SAE, build, step, to_inference

from sae_lens_afa import (
    TopAFASAE,
    TopAFASAEConfig,
    TopAFATrainingSAE,
    TopAFATrainingSAEConfig,
)
from sae_lens_afa.selection import norm_matching_topk

# ---- configuration


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("d_in", 0, "integer >= 1, got 0"),
        ("d_sae", 0, "integer >= 1, got 0"),
        ("d_sae", 2.5, "integer >= 1, got 2.5"),
        ("apply_b_dec_to_input", False, "must be True, got False"),
        ("normalize_activations", "covariance_whitening", "'none', 'expected_average_only_in', 'layer_norm'"),
        ("normalize_activations", "constant_norm_rescale", "'none', 'expected_average_only_in', 'layer_norm'"),
        ("afa_coefficient", -0.1, ">= 0, got -0.1"),
        ("afa_coefficient", float("nan"), "finite number >= 0, got nan"),
        ("afa_coefficient", "1/32", "finite number >= 0, got '1/32'"),
        ("afa_warm_up_steps", -1, "integer >= 0, got -1"),
        ("aux_loss_coefficient", -1.0, ">= 0, got -1.0"),
        ("k_aux", 0, "integer >= 1, got 0"),
        ("target_ratio", 0.0, "> 0, got 0.0"),
        ("loss_reduction", "median", "'sum', 'mean', got 'median'"),
        ("decoder_init_norm", 0.0, "> 0, got 0.0"),
    ],
)
def test_a_bad_config_value_names_its_field_and_what_was_expected(field, value, expected):
    with pytest.raises(ValueError, match=rf"TopAFATrainingSAEConfig\.{field}.*{expected}"):
        TopAFATrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, field: value})


@pytest.mark.parametrize("field", ["d_sae", "apply_b_dec_to_input", "target_ratio"])
def test_the_inference_config_is_checked_too(field):
    with pytest.raises(ValueError, match=rf"TopAFASAEConfig\.{field}"):
        TopAFASAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, field: 0})


def test_the_paper_setting_differs_from_the_default_in_scale_and_residual_only():
    paper, default = (
        c.to_dict()
        for c in (
            TopAFATrainingSAEConfig.paper(d_in=D_IN, d_sae=D_SAE),
            TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
        )
    )
    differing = {k for k in paper if paper[k] != default[k]} - {"metadata"}
    assert differing == {"loss_reduction", "detach_aux_residual"}
    assert TopAFATrainingSAEConfig.paper(d_in=2, d_sae=3, k_aux=5, afa_coefficient=0.5).k_aux == 5


# ---- encoding


@given(st.lists(st.integers(1, 4), max_size=3), st.sampled_from(["none", "layer_norm"]))
def test_encoding_follows_the_rule_for_any_leading_shape(shape, normalize):
    torch.manual_seed(len(shape))
    sae = build(normalize_activations=normalize)
    x = torch.randn(*shape, D_IN) * 3
    acts, hidden_pre = sae.encode_with_hidden_pre(x)
    z = x
    if normalize == "layer_norm":
        z = x - x.mean(-1, keepdim=True)
        z = z / (z.std(-1, keepdim=True) + 1e-5)
    centered = z - sae.b_dec
    assert torch.equal(hidden_pre, centered @ sae.W_enc)
    expected, near_tie = reference.norm_matching_topk(
        hidden_pre.detach(), centered.double().norm(dim=-1), sae.W_dec.detach().norm(dim=-1)
    )
    assert ((acts == expected).all(-1) | near_tie).all()


def test_a_lower_target_asks_for_fewer_features_and_is_saved_with_the_sae(tmp_path):
    x = torch.randn(30, D_IN)
    l0 = {}
    for ratio in (1.0, 0.5):
        torch.manual_seed(0)
        sae = build(target_ratio=ratio, normalize_activations="none")
        saved = to_inference(sae, tmp_path / str(ratio))
        assert saved.cfg.target_ratio == ratio
        acts, hidden_pre = sae.encode_with_hidden_pre(x)
        target = ratio * (x - sae.b_dec).double().norm(dim=-1)
        assert torch.equal(acts, norm_matching_topk(hidden_pre, target, sae.W_dec.norm(dim=-1)))
        assert torch.equal(acts, saved.encode(x))
        l0[ratio] = torch.count_nonzero(acts, dim=-1)
    assert (l0[0.5] <= l0[1.0]).all()
    assert l0[0.5].sum() < l0[1.0].sum()


def test_weights_saved_before_there_was_a_ratio_match_the_whole_norm(tmp_path):
    to_inference(build(), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config.pop("target_ratio") == 1.0
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert SAE.load_from_disk(tmp_path).cfg.target_ratio == 1.0


def test_scaling_the_input_scales_the_code():
    sae = build(normalize_activations="none")
    x = torch.randn(8, D_IN)
    acts = sae.encode(x)
    sae.b_dec.data *= 4
    assert torch.equal(sae.encode(4 * x), 4 * acts)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_token_stays_visible_and_leaves_the_others_alone(bad):
    sae = build(normalize_activations="none")
    x = torch.randn(4, D_IN)
    clean = sae(x)
    x[2, 3] = bad
    out = sae(x)
    assert not out[2].isfinite().any()
    assert torch.equal(out[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(3, D_IN + 1), ValueError, r"d_in = 12.*\[3, 13\]"),
        (torch.tensor(1.0), ValueError, r"d_in = 12.*\[\]"),
        (torch.ones(3, D_IN, dtype=torch.int64), TypeError, "int64"),
    ],
)
@pytest.mark.parametrize("call", ["encode", "forward", "training_forward_pass"])
def test_a_wrong_input_is_one_clear_error(x, error, message, call):
    sae = build()
    with pytest.raises(error, match=message):
        step(sae, x) if call == "training_forward_pass" else getattr(sae, call)(x)


def test_hooks_can_change_activations():
    sae = build()
    x = torch.randn(3, D_IN)
    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))])
    bias_only = sae.b_dec * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
    torch.testing.assert_close(out, bias_only)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_hook_z_is_reshaped_back(tmp_path, shape):
    cfg = TopAFASAEConfig(d_in=20, d_sae=30, reshape_activations="hook_z", normalize_activations="layer_norm")
    cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae = TopAFASAE(cfg)
    x = torch.randn(*shape[:-1], 4, 5)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (*shape[:-1], 30)
    with pytest.raises(ValueError, match=r"heads \* d_head = d_in = 20"):
        sae.encode(torch.randn(3, 3, 5))


# ---- initialisation, saving, folding


def test_initialisation_is_the_reference_s():
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=64, d_sae=600))
    assert sae.W_enc.abs().max() <= 0.1
    assert sae.W_enc.abs().max() > 0.0999
    torch.testing.assert_close(sae.W_dec, torch.nn.functional.normalize(sae.W_enc.T, dim=-1))
    assert (sae.b_dec == 0).all()
    assert set(dict(sae.named_parameters())) == {"W_enc", "W_dec", "b_dec"}


def test_decoder_init_norm_is_saelens_heuristic():
    sae = build(decoder_init_norm=0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((D_SAE,), 0.1))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


@pytest.mark.parametrize("change", ["d_sae", "missing", "unknown"])
def test_weights_that_disagree_with_the_config_name_the_tensor(tmp_path, change):
    sae = build()
    if change == "unknown":
        sae.register_buffer("extra", torch.zeros(1))
    if change == "missing":
        sae.process_state_dict_for_saving_inference = lambda state_dict: state_dict.pop("W_dec")
    sae.save_inference_model(tmp_path)
    if change == "d_sae":
        cfg = json.loads((tmp_path / "cfg.json").read_text())
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"d_sae": D_SAE + 1}))
    message = {
        "d_sae": r"W_enc has shape \[12, 40\].*asks for \[12, 41\]",
        "missing": "no tensor 'W_dec'",
        "unknown": r"hold \['extra'\]",
    }
    with pytest.raises(ValueError, match=message[change]):
        SAE.load_from_disk(tmp_path)


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_folding_decoder_norms_changes_no_output(tmp_path, kind):
    sae = build(normalize_activations="none")
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    sae.W_dec.data[3] = 0
    sae = sae if kind == "training" else to_inference(sae, tmp_path)
    x = torch.randn(20, D_IN)
    before, active = sae(x), sae.encode(x) > 0
    sae.fold_W_dec_norm()
    assert torch.equal(sae.encode(x) > 0, active)
    torch.testing.assert_close(sae(x), before)


@pytest.mark.parametrize("factor", [0.25, 3.7])
def test_folding_the_activation_scale_changes_no_output(factor):
    sae = build(normalize_activations="expected_average_only_in")
    x = torch.randn(20, D_IN)
    before, active = sae(factor * x) / factor, sae.encode(factor * x) > 0
    sae.fold_activation_norm_scaling_factor(factor)
    assert torch.equal(sae.encode(x) > 0, active)
    torch.testing.assert_close(sae(x), before)


def test_whitening_cannot_be_folded():
    with pytest.raises(NotImplementedError, match="top_afa cannot absorb a whitening"):
        build().fold_activation_whitening(torch.zeros(D_IN), torch.eye(D_IN), torch.eye(D_IN))
