"""mutual_choice and feature_choice as SAELens architectures: what SAELens' own suite asks of `batchtopk`."""

from __future__ import annotations

import copy
import json
import re

import choice_reference as reference
import pytest
import torch
from choice_helpers import D_IN, D_SAE, VARIANTS, build, l0, step, to_inference, train
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import TrainingSAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import TrainingSAEConfig, TrainStepInput

from sae_lens_afa import FeatureChoiceTrainingSAEConfig, MutualChoiceTrainingSAEConfig
from sae_lens_afa.saes.zipf import ZipfLaw, allocate_matches, expected_densities

ALL = pytest.mark.parametrize("variant", VARIANTS)

# ---- configuration


@pytest.mark.parametrize("config", [MutualChoiceTrainingSAEConfig, FeatureChoiceTrainingSAEConfig])
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("d_in", 0, "integer >= 1, got 0"),
        ("k", 0, "> 0, got 0"),
        ("k", D_SAE + 1, "at most 40, got 41"),
        ("dying_fraction", -0.1, ">= 0, got -0.1"),
        ("dying_fraction", 1.1, "at most 1, got 1.1"),
        ("density_lr", 0.0, "> 0, got 0.0"),
        ("topk_threshold_lr", 2, "at most 1, got 2"),
        ("aux_loss_coefficient", float("nan"), ">= 0, got nan"),
        ("use_sparse_activations", True, "must be False"),
        ("normalize_activations", "constant_norm_rescale", "'none', 'expected_average_only_in', 'layer_norm'"),
    ],
)
def test_a_bad_config_value_names_its_field_and_what_was_expected(config, field, value, expected):
    with pytest.raises(ValueError, match=rf"{config.__name__}\.{field}.*{re.escape(expected)}"):
        config(**{"d_in": D_IN, "d_sae": D_SAE, "k": 4, field: value})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prior": "pareto"}, r"prior must be one of 'uniform', 'zipf'"),
        ({"prior": "zipf"}, r"zipf_exponent=None is to be fitted.*feature_choice_start_step=0.*give zipf_exponent, or"),
        (
            {"prior": "zipf", "feature_choice_start_step": 5, "d_sae": 2, "k": 1},
            r"zipf_exponent and zipf_offset must be given for d_sae < 3",
        ),
        ({"prior": "zipf", "zipf_exponent": -1.0}, r"zipf_exponent must be a finite number >= 0, got -1.0"),
        ({"zipf_exponent": 1.0}, r"zipf_exponent is for prior='zipf'"),
        ({"zipf_offset": 1.0}, r"zipf_offset is for prior='zipf'"),
        ({"feature_choice_start_step": -1}, r"feature_choice_start_step must be an integer >= 0"),
        ({"feature_choice_start_step": 0.5}, r"feature_choice_start_step must be an integer >= 0"),
        ({"feature_threshold_lr": 0.2}, r"feature_threshold_lr must be at most 0.1"),
    ],
)
def test_a_bad_feature_choice_value_says_what_to_do(settings, expected):
    with pytest.raises(ValueError, match=rf"FeatureChoiceTrainingSAEConfig\.{expected}"):
        FeatureChoiceTrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, "k": 4, **settings})


@ALL
def test_config_round_trips_through_its_dict(variant):
    cfg = build(variant, dying_fraction=0.25).cfg
    as_json = json.loads(json.dumps(cfg.to_dict()))
    assert TrainingSAEConfig.from_dict(as_json).to_dict() == cfg.to_dict()
    assert as_json["architecture"] == variant.split()[0]
    assert cfg.get_inference_sae_cfg_dict()["architecture"] == "jumprelu"
    assert cfg.get_inference_sae_cfg_dict()["metadata"]["training_architecture_details"]["dying_fraction"] == 0.25


def test_a_plain_default_config_is_good():
    for name in ("mutual_choice", "feature_choice"):
        sae_class, config_class = get_sae_training_class(name)
        assert sae_class(config_class(d_in=16, d_sae=128)).cfg.k == 100


# ---- a batch


@given(st.integers(1, 30), st.sampled_from([0.3, 1, 2.5, 4, 40]), st.booleans())
def test_mutual_choice_shares_out_exactly_its_budget(n_tokens, k, rescale):
    sae = build("mutual_choice", k=k, rescale_acts_by_decoder_norm=rescale)
    sae.W_dec.data.normal_()
    x = torch.randn(n_tokens, D_IN)
    if round(k * n_tokens) == 0:
        with pytest.raises(ValueError, match=rf"a batch of {n_tokens} tokens has no matches at k = {k}"):
            step(sae, x)
        return
    out = step(sae, x)
    hidden_pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if rescale:
        hidden_pre = hidden_pre * sae.W_dec.norm(dim=-1)
    assert torch.equal(out.hidden_pre, hidden_pre)
    assert torch.equal(out.feature_acts, reference.mutual_choice(hidden_pre, round(k * n_tokens)))
    assert out.metrics["unused_matches"] == round(k * n_tokens) - (out.feature_acts > 0).sum()


@given(st.integers(1, 30), st.sampled_from([1, 2.5, 4, 40]), st.sampled_from(["uniform", "zipf"]))
def test_feature_choice_gives_each_feature_its_share(n_tokens, k, prior):
    settings = {"prior": "zipf", "zipf_exponent": 1.0, "zipf_offset": 3.0} if prior == "zipf" else {}
    sae = build("feature_choice", k=k, **settings)
    law = ZipfLaw(1.0, 3.0) if prior == "zipf" else ZipfLaw(0.0)
    for at in range(3):
        order = sae.density.argsort(descending=True, stable=True) if prior == "zipf" else torch.arange(D_SAE)
        out = step(sae, torch.randn(n_tokens, D_IN), at)
        total = round(k * n_tokens)
        by_rank = allocate_matches(expected_densities(law, D_SAE, k).float(), total, n_tokens, turn=at)
        n_matches = torch.empty_like(by_rank)
        n_matches[order] = by_rank
        assert n_matches.sum() == total
        assert torch.equal(out.feature_acts, reference.feature_choice(out.hidden_pre, n_matches.tolist()))
        assert out.metrics["unused_matches"] == total - (out.feature_acts > 0).sum()


def test_a_batch_too_small_for_one_match_each_gives_all_features_a_turn():
    sae = build("feature_choice", k=2)  # 6 matches of 40 features
    sae.b_enc.data.fill_(10.0)
    fired = torch.zeros(D_SAE)
    for at in range(40):
        fired += (step(sae, torch.randn(3, D_IN), at).feature_acts > 0).sum(0)
    assert fired.sum() == 40 * 6
    assert fired.min() >= 5
    assert fired.max() <= 7


def test_a_smaller_last_batch_is_shared_out_too():
    sae = build("feature_choice zipf")
    for at, n_tokens in enumerate((32, 32, 11, 1)):
        out = step(sae, torch.randn(n_tokens, D_IN), at)
        assert int((out.feature_acts > 0).sum()) + int(out.metrics["unused_matches"]) == 4 * n_tokens


@ALL
def test_the_budget_is_that_of_all_leading_dimensions(variant):
    sae = build(variant)
    x = torch.randn(3, 5, D_IN)
    acts = sae.encode(x)
    assert acts.shape == (3, 5, D_SAE)
    assert torch.equal(acts.flatten(0, 1), sae.encode(x.flatten(0, 1)))
    assert sae(x).shape == x.shape
    assert step(sae, x).loss.isfinite()


@ALL
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_the_error_and_the_auxiliary_term(variant, dtype):
    sae = build(variant, dtype=dtype)
    x = torch.randn(20, D_IN).to(sae.dtype)
    out = step(sae, x, dead=torch.arange(D_SAE) < 3)
    torch.testing.assert_close(out.losses["mse_loss"], (out.sae_out - x).square().sum(-1).mean())
    torch.testing.assert_close(out.loss, out.losses["mse_loss"] + out.losses["auxiliary_reconstruction_loss"])
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in sae.parameters())


@ALL
def test_under_autocast_the_batch_is_shared_out_exactly(variant):
    sae = build(variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(sae, torch.randn(20, D_IN), dead=torch.arange(D_SAE) < 3)
        out.loss.backward()
    # bfloat16 has many ties; none is kept or dropped with another.
    assert int((out.feature_acts > 0).sum()) + int(out.metrics["unused_matches"]) == 80


@ALL
def test_a_compiled_step_is_the_same_step(variant):
    sae = build(variant)
    twin = copy.deepcopy(sae)
    compiled = torch.compile(twin.training_forward_pass, backend="aot_eager")
    dead = torch.arange(D_SAE) < 5
    for at in range(5):
        x = torch.randn(20, D_IN)
        plain, other = step(sae, x, at, dead), compiled(TrainStepInput(x, {}, dead, at, False))
        assert torch.equal(plain.feature_acts > 0, other.feature_acts > 0)
        torch.testing.assert_close(other.loss, plain.loss)
        other.loss.backward()
    for (name, ours), (_, theirs) in zip(sae.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name, equal_nan=True)


@ALL
def test_d_sae_of_one_works(tmp_path, variant):
    settings = {"zipf_exponent": 1.0, "zipf_offset": 0.0} if "late" in variant else {}
    sae = build(variant, d_sae=1, k=1, **settings)
    out = train(sae, [torch.randn(6, D_IN) for _ in range(5)])
    out.loss.backward()
    assert to_inference(sae, tmp_path)(torch.randn(2, D_IN)).shape == (2, D_IN)


@ALL
def test_hooks_fire_where_saelens_has_them(variant):
    sae = build(variant)
    x = torch.randn(8, D_IN)
    _, cache = sae.run_with_cache(x)
    assert {f"hook_sae_{n}" for n in ("input", "acts_pre", "acts_post", "recons", "output")} <= set(cache)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))


# ---- inference


def drifting(sae, n_batches: int, n_tokens: int = 64) -> list[torch.Tensor]:
    return [torch.randn(n_tokens, D_IN) for _ in range(n_batches)]


@ALL
def test_in_eval_mode_a_code_does_not_depend_on_the_batch(variant):
    sae = build(variant)
    train(sae, drifting(sae, 8))
    sae.eval()
    x = torch.randn(20, D_IN)
    with torch.no_grad():
        alone = torch.cat([sae.encode(row[None]) for row in x])
        assert torch.equal(alone > 0, sae.encode(x) > 0)
        torch.testing.assert_close(alone, sae.encode(x))


@ALL
def test_eval_mode_changes_nothing_that_is_tracked(variant):
    sae = build(variant)
    train(sae, drifting(sae, 5))
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.eval()
    out = step(sae, torch.randn(20, D_IN), 5)
    assert torch.equal(out.feature_acts, sae.encode(out.sae_in))
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)


@ALL
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_saved_model_is_a_jumprelu_with_the_outputs_of_eval_mode(tmp_path, variant, normalize, rescale):
    sae = build(variant, normalize_activations=normalize, rescale_acts_by_decoder_norm=rescale)
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    train(sae, drifting(sae, 8))
    loaded = to_inference(sae, tmp_path)
    assert isinstance(loaded, JumpReLUSAE)
    assert set(loaded.state_dict()) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    assert (loaded.threshold.unique().numel() > 1) == (variant != "mutual_choice")
    x = torch.randn(3, 50, D_IN)
    sae.eval()
    if rescale:  # folded into the weights, with another rounding
        torch.testing.assert_close(loaded.encode(x), sae.encode(x))
        torch.testing.assert_close(loaded(x), sae(x))
    else:
        assert torch.equal(loaded.encode(x), sae.encode(x))
        assert torch.equal(loaded(x), sae(x))


@pytest.mark.parametrize("variant", ["feature_choice late"])
def test_saved_in_its_first_phase_it_has_the_global_threshold(tmp_path, variant):
    sae = build(variant)
    train(sae, drifting(sae, 2))
    assert torch.equal(to_inference(sae, tmp_path).threshold, sae.topk_threshold.float().expand(D_SAE))


@ALL
def test_a_training_checkpoint_round_trips(tmp_path, variant):
    sae = build(variant)
    train(sae, drifting(sae, 8))
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.cfg.to_dict() == sae.cfg.to_dict()
    for (name, ours), (_, theirs) in zip(sae.named_buffers(), loaded.named_buffers(), strict=True):
        assert ours.dtype == theirs.dtype, name
        # SAELens casts what it loads to the SAE's dtype, BatchTopK's float64 threshold too.
        expected = ours.float().double() if name == "topk_threshold" else ours
        torch.testing.assert_close(theirs, expected, rtol=0, atol=0, equal_nan=True, msg=name)
    x = torch.randn(20, D_IN)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded.eval()(x), sae.eval()(x))


@ALL
@pytest.mark.parametrize("kind", ["training", "eval", "inference"])
def test_folding_decoder_norms_changes_no_output(tmp_path, variant, kind):
    sae = build(variant)
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    train(sae, drifting(sae, 8))
    sae = sae if kind == "training" else sae.eval() if kind == "eval" else to_inference(sae, tmp_path)
    x = torch.randn(40, D_IN)
    before = sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(sae(x), before)


@ALL
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("factor", [0.25, 3.7])
def test_folding_the_activation_scale_changes_no_output(tmp_path, variant, rescale, factor):
    sae = build(variant, normalize_activations="expected_average_only_in", rescale_acts_by_decoder_norm=rescale)
    train(sae, drifting(sae, 8))
    x = torch.randn(40, D_IN)
    outputs = [(sae(factor * x) / factor, sae.eval()(factor * x) / factor)]
    sae.train().fold_activation_norm_scaling_factor(factor)
    outputs.append((sae(x), sae.eval()(x)))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(to_inference(sae, tmp_path)(x), outputs[1][1])


@ALL
def test_a_whitening_is_folded_as_in_batchtopk(variant):
    sae = build(variant, normalize_activations="covariance_whitening")
    train(sae, drifting(sae, 8))
    sae.eval()
    mean, matrix = torch.randn(D_IN), torch.eye(D_IN) + 0.1 * torch.randn(D_IN, D_IN)
    inverse = torch.linalg.inv(matrix)
    x = torch.randn(40, D_IN)
    expected = sae((x - mean) @ matrix) @ inverse + mean
    sae.fold_activation_whitening(mean, matrix, inverse)
    torch.testing.assert_close(sae(x), expected, atol=1e-4, rtol=1e-4)


def test_a_copy_is_independent():
    sae = build("feature_choice zipf")
    train(sae, drifting(sae, 2))
    other = copy.deepcopy(sae)
    before = sae.feature_threshold.clone()
    train(other, drifting(sae, 3), start=2)
    assert torch.equal(sae.feature_threshold, before)
    assert not torch.equal(other.feature_threshold, before)


# ---- thresholds: as many features at inference as in training


@pytest.mark.parametrize("k", [2, 4, 18])
@pytest.mark.parametrize("n_tokens", [16, 128])
@ALL
def test_inference_l0_is_near_training_l0(variant, k, n_tokens):
    sae = build(variant, k=k)
    sae.b_enc.data.normal_(std=0.5)  # densities differ, and at k = 18 some matches are not used
    train(sae, [torch.randn(n_tokens, D_IN) for _ in range(600)])
    at = 600
    used = [l0(step(sae, torch.randn(n_tokens, D_IN), at + i).feature_acts) for i in range(50)]
    found = l0(sae.eval().encode(torch.randn(20_000, D_IN)))
    assert found == pytest.approx(sum(used) / len(used), rel=0.1)


def test_features_without_a_positive_pre_activation_stay_silent():
    sae = build("feature_choice")
    sae.b_enc.data[:7] = -100
    out = train(sae, drifting(sae, 30))
    assert out.metrics["unused_matches"] >= 7 * 6
    assert (sae.feature_threshold[:7] == 0).all()
    assert (sae.eval().encode(torch.randn(500, D_IN))[:, :7] == 0).all()


def test_thresholds_follow_activations_that_shrink():
    sae = build("feature_choice")
    batches = drifting(sae, 400)
    train(sae, batches[:200])
    sae.W_enc.data *= 0.5
    sae.b_enc.data *= 0.5
    train(sae, batches[200:], start=200)
    assert l0(sae.eval().encode(torch.randn(20_000, D_IN))) == pytest.approx(4, rel=0.1)
