"""mutual_choice and feature_choice as SAELens architectures: what SAELens' own suite asks of `batchtopk`."""

from __future__ import annotations

import copy
import re

import choice_reference as reference
import pytest
import torch
from choice_helpers import D_IN, D_SAE, VARIANTS, build, step, to_inference, train
from hypothesis import given
from hypothesis import strategies as st
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput

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
        ("k", D_SAE + 1, "at most 40, got 41: give k"),
        ("k", 100, "at most 40, got 100, which is the default where k is not given: give k"),
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


@pytest.mark.parametrize("config", [MutualChoiceTrainingSAEConfig, FeatureChoiceTrainingSAEConfig])
def test_a_default_that_does_not_fit_a_size_says_that_it_was_not_given(config):
    with pytest.raises(ValueError, match=r"k must be at most 16, got 100, which is the default where k is not given"):
        config(d_in=8, d_sae=16)
    with pytest.raises(ValueError, match=r"k must be at most 16, got 17: give k"):
        config(d_in=8, d_sae=16, k=17)
    with pytest.raises(ValueError, match=r"normalize_activations='layer_norm' needs d_in >= 2, got 1"):
        config(d_in=1, d_sae=16, k=4, normalize_activations="layer_norm")


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
@pytest.mark.slow
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
