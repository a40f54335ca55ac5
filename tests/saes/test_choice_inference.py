"""mutual_choice and feature_choice outside of training: thresholds, saving, folding."""

from __future__ import annotations

import copy

import pytest
import torch
from choice_helpers import D_IN, D_SAE, VARIANTS, build, l0, step, to_inference, train
from sae_lens import TrainingSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE

ALL = pytest.mark.parametrize("variant", VARIANTS)


def batches(n_batches: int, n_tokens: int = 64) -> list[torch.Tensor]:
    return [torch.randn(n_tokens, D_IN) for _ in range(n_batches)]


@ALL
def test_in_eval_mode_a_code_does_not_depend_on_the_batch(variant):
    sae = build(variant)
    train(sae, batches(8))
    sae.eval()
    x = torch.randn(20, D_IN)
    with torch.no_grad():
        alone = torch.cat([sae.encode(row[None]) for row in x])
        assert torch.equal(alone > 0, sae.encode(x) > 0)
        torch.testing.assert_close(alone, sae.encode(x))


@ALL
def test_eval_mode_changes_nothing_that_is_tracked(variant):
    sae = build(variant)
    train(sae, batches(5))
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
    train(sae, batches(8))
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
    train(sae, batches(2))
    below = torch.nextafter(sae.topk_threshold.float(), torch.tensor(0.0))  # JumpReLU keeps what exceeds it
    assert torch.equal(to_inference(sae, tmp_path).threshold, below.expand(D_SAE))


@ALL
def test_a_training_checkpoint_round_trips(tmp_path, variant):
    sae = build(variant)
    train(sae, batches(8))
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
    train(sae, batches(8))
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
    train(sae, batches(8))
    x = torch.randn(40, D_IN)
    outputs = [(sae(factor * x) / factor, sae.eval()(factor * x) / factor)]
    sae.train().fold_activation_norm_scaling_factor(factor)
    outputs.append((sae(x), sae.eval()(x)))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(to_inference(sae, tmp_path)(x), outputs[1][1])


@ALL
def test_a_whitening_is_folded_as_in_batchtopk(variant):
    sae = build(variant, normalize_activations="covariance_whitening")
    train(sae, batches(8))
    sae.eval()
    mean, matrix = torch.randn(D_IN), torch.eye(D_IN) + 0.1 * torch.randn(D_IN, D_IN)
    inverse = torch.linalg.inv(matrix)
    x = torch.randn(40, D_IN)
    expected = sae((x - mean) @ matrix) @ inverse + mean
    sae.fold_activation_whitening(mean, matrix, inverse)
    torch.testing.assert_close(sae(x), expected, atol=1e-4, rtol=1e-4)


def test_a_copy_is_independent():
    sae = build("feature_choice zipf")
    train(sae, batches(2))
    other = copy.deepcopy(sae)
    before = sae.feature_threshold.clone()
    train(other, batches(3), start=2)
    assert torch.equal(sae.feature_threshold, before)
    assert not torch.equal(other.feature_threshold, before)


# ---- thresholds: as many features at inference as in training


@pytest.mark.parametrize(
    ("variant", "k", "n_tokens"),
    [
        *(pytest.param(variant, 18, 128, marks=pytest.mark.slow) for variant in VARIANTS),
        ("mutual_choice", 2, 16),
        ("feature_choice zipf", 2, 16),
    ],
)
def test_inference_l0_is_near_training_l0(variant, k, n_tokens):
    sae = build(variant, k=k)
    sae.b_enc.data.normal_(std=0.5)  # densities differ, and at k = 18 some matches are not used
    train(sae, [torch.randn(n_tokens, D_IN) for _ in range(600)])
    at = 600
    used = [l0(step(sae, torch.randn(n_tokens, D_IN), at + i).feature_acts) for i in range(50)]
    found = l0(sae.eval().encode(torch.randn(20_000, D_IN)))
    assert found == pytest.approx(sum(used) / len(used), rel=0.1)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_match_on_the_cut_is_kept_after_training(tmp_path, variant, dtype):
    sae = build(variant, dtype=dtype, rescale_acts_by_decoder_norm=False)
    (x,) = batches(1)
    matched = train(sae, [x]).feature_acts > 0
    for trained in (sae.eval(), to_inference(sae, tmp_path)):
        kept = trained.encode(x) > 0
        assert (kept | ~matched).all()
        # In bfloat16 other values equal the cut, too.
        assert dtype == "bfloat16" or torch.equal(kept, matched)


@ALL
def test_a_threshold_that_is_not_a_number_is_saved_as_it_is(tmp_path, variant):
    sae = build(variant)
    train(sae, batches(1))
    for name in ("topk_threshold", "feature_threshold"):
        if name in sae._buffers:
            sae.get_buffer(name).fill_(torch.nan)
    assert to_inference(sae, tmp_path).threshold.isnan().all()


@ALL
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_threshold_in_force_is_logged(variant, mode):
    sae = build(variant)
    train(sae, batches(2))
    metrics = step(sae.train(mode == "train"), *batches(1), at=2).metrics
    per_feature = {name for name in metrics if name.startswith("feature_threshold")}
    if sae.threshold.numel() == 1:
        assert not per_feature
        assert metrics["topk_threshold"] == sae.topk_threshold
    else:
        assert "topk_threshold" not in metrics  # that of a phase which is over
        assert per_feature == {"feature_threshold_mean", "feature_threshold_min", "feature_threshold_max"}
        for name in per_feature:
            assert callable(metrics[name])  # computed on logging steps only
            assert metrics[name]() == getattr(sae.feature_threshold, name.split("_")[-1])()


def test_features_without_a_positive_pre_activation_stay_silent():
    sae = build("feature_choice")
    sae.b_enc.data[:7] = -100
    out = train(sae, batches(30))
    assert out.metrics["unused_matches"] >= 7 * 6
    assert (sae.feature_threshold[:7] == 0).all()
    assert (sae.eval().encode(torch.randn(500, D_IN))[:, :7] == 0).all()


def test_thresholds_follow_activations_that_shrink():
    sae = build("feature_choice")
    train(sae, batches(200))
    sae.W_enc.data *= 0.5
    sae.b_enc.data *= 0.5
    train(sae, batches(200), start=200)
    assert l0(sae.eval().encode(torch.randn(20_000, D_IN))) == pytest.approx(4, rel=0.1)
