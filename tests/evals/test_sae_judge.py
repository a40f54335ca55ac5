"""Every architecture that SAELens can load, every normalisation, judged as it decodes."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import HookedSAETransformer
from sae_lens import saes as lens
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAE
from sae_lens.saes.transcoder import JumpReLUSkipTranscoder, JumpReLUTranscoder, SkipTranscoder, Transcoder
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from sae_lens_afa import AFAResult, TopAFATrainingSAE, TopAFATrainingSAEConfig, evaluate_activations, export_jumprelu
from sae_lens_afa.evals.judge import SAEJudge
from sae_lens_afa.evals.sae_space import SAESpace, architecture_of
from sae_lens_afa.functional import feature_norm

D_IN, D_SAE, TOKENS = 12, 40, 30
OPTIONS = {
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "batchtopk": {"k": 5},
    "matryoshka_batchtopk": {"k": 5, "matryoshka_widths": [10, D_SAE]},
    "matching_pursuit": {"max_iterations": 6},
    "mutual_choice": {"k": 5},
    "feature_choice": {"k": 5},
}
# By their configs.
REFUSED_NORMALIZATION = {
    "constant_norm_rescale": {"top_afa", "afa_threshold", "afa_pursuit", "mutual_choice", "feature_choice"}
}
REFUSED = {"transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "temporal"}
TINY = HookedTransformerConfig(
    n_layers=1, d_model=D_IN, n_ctx=8, n_heads=3, d_head=4, d_vocab=9, act_fn="gelu", seed=0, device="cpu"
)
NORMALIZATIONS = ["none", "layer_norm", "constant_norm_rescale"]
TRAINING = sorted(SAE_TRAINING_CLASS_REGISTRY)
INFERENCE = sorted(set(SAE_CLASS_REGISTRY) - REFUSED)


def build(architecture: str, *, training: bool, **overrides) -> SAE:
    registry = SAE_TRAINING_CLASS_REGISTRY if training else SAE_CLASS_REGISTRY
    sae_class, config = registry[architecture]
    options = {"d_in": D_IN, "d_sae": D_SAE, **OPTIONS.get(architecture, {}), **overrides}
    if training and architecture == "matching_pursuit":
        options["decoder_init_norm"] = 1.0
    return randomise(sae_class(config(**options)))


def randomise(sae: SAE) -> SAE:
    """Weights with decoder norms that differ, a bias, and activations of a common size."""
    sae.b_dec.data.normal_(std=0.3)
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1)
    if "matching_pursuit" not in sae.cfg.architecture():
        sae.W_dec.data *= 0.5 + torch.rand(D_SAE, 1)
        sae.W_enc.data = sae.W_dec.data.T.contiguous()
    return sae


def activations(*leading: int) -> Tensor:
    return torch.randn(*leading, D_IN) * (0.5 + torch.rand(*leading, 1)) + 0.2


def known(result: AFAResult) -> dict[str, float]:
    return {name: value for name, value in result.to_dict().items() if value is not None}


def dense_acts(sae: SAE, x: Tensor) -> Tensor:
    acts = sae.encode(x)
    return acts.to_dense() if acts.is_sparse else acts


def expected_norms(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """z and f by the definition: in the normalised space, f scaled once by decoder norms."""
    acts = dense_acts(sae, x)
    z = x
    if sae.cfg.normalize_activations == "layer_norm":
        z = x - x.mean(-1, keepdim=True)
        z = z / (z.std(-1, keepdim=True) + 1e-5)
    elif sae.cfg.normalize_activations == "constant_norm_rescale":
        z = x * D_IN**0.5 / x.norm(dim=-1, keepdim=True)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        acts = acts / sae.W_dec.norm(dim=-1)
    return z.norm(dim=-1), feature_norm(acts, sae.W_dec, sae.b_dec)


@pytest.mark.parametrize(
    ("architecture", "training", "normalization"),
    [
        (architecture, training, normalization)
        for training, names in ((True, TRAINING), (False, INFERENCE))
        for architecture in names
        for normalization in NORMALIZATIONS
        if architecture not in REFUSED_NORMALIZATION.get(normalization, ())
    ],
)
@torch.no_grad()
def test_every_architecture_and_normalisation(architecture, training, normalization):
    sae = build(architecture, training=training, normalize_activations=normalization)
    before = copy.deepcopy(sae.state_dict())
    x = activations(TOKENS)
    result = evaluate_activations(sae, x)
    dense, features = expected_norms(sae, x)
    torch.testing.assert_close(torch.tensor(result.tokens.dense_norm), dense.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(result.tokens.feature_norm), features.double(), rtol=1e-4, atol=1e-5)
    # Error and norms are of one space: where there is no normalisation, it is that of the input.
    if normalization == "none":
        error = (sae(x) - x).square().sum(-1).double()
        torch.testing.assert_close(torch.tensor(result.tokens.squared_error), error, rtol=1e-3, atol=1e-5)
    assert result.l0_mean == pytest.approx((dense_acts(sae, x) != 0).sum(-1).double().mean().item())
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@torch.no_grad()
def test_explained_variance_at_the_hook_point_is_that_of_the_sae_s_output(normalization, training):
    sae = build("standard", training=training, normalize_activations=normalization)
    x = activations(TOKENS)
    result = evaluate_activations(sae, x, batch_size=7)
    expected = 1 - ((sae.decode(sae.encode(x)) - x).square().sum() / (x - x.mean(0)).square().sum()).item()
    if training:  # batches of one size: a training SAE decodes with the statistics of the batch that it encoded
        result = evaluate_activations(sae, x)
    assert result.explained_variance_raw == pytest.approx(expected, rel=1e-5)
    if normalization == "none":
        assert result.explained_variance_raw == pytest.approx(result.explained_variance, rel=1e-6)
    else:
        assert result.explained_variance_raw != pytest.approx(result.explained_variance, rel=1e-3)


def test_explained_variance_at_the_hook_point_undoes_the_scaling_outside_of_the_sae():
    sae = build("standard", training=True, normalize_activations="expected_average_only_in")
    x, scaler = activations(TOKENS), ActivationScaler(scaling_factor=2.5)
    result = evaluate_activations(sae, x, activation_scaler=scaler)
    with torch.no_grad():
        error = (sae.decode(sae.encode(2.5 * x)) / 2.5 - x).square().sum()
    expected = 1 - (error / (x - x.mean(0)).square().sum()).item()
    assert result.explained_variance_raw == pytest.approx(expected, rel=1e-5)


def test_explained_variance_at_the_hook_point_without_outliers():
    sae = build("standard", training=False, normalize_activations="layer_norm")
    x = activations(60)
    x[::20] *= 100
    result = evaluate_activations(sae, x, outlier_norm_multiple=5.0)
    kept = evaluate_activations(sae, x[x.norm(dim=-1) <= result.outlier_norm])
    assert result.without_outliers.explained_variance_raw == pytest.approx(kept.explained_variance_raw, rel=1e-6)
    assert result.explained_variance_raw != pytest.approx(kept.explained_variance_raw, rel=1e-3)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_topk_with_sparse_activations_and_with_decoder_norms_in_them(rescale, sparse):
    options = {"rescale_acts_by_decoder_norm": rescale, "use_sparse_activations": sparse}
    sae = build("topk", training=True, **options)
    x = activations(TOKENS)
    assert sae.encode(x).is_sparse == sparse
    _, features = expected_norms(sae, x)
    result = evaluate_activations(sae, x)
    torch.testing.assert_close(torch.tensor(result.tokens.feature_norm), features.detach().double(), rtol=1e-5, atol=0)


def test_folding_decoder_norms_into_an_sae_changes_no_metric():
    sae = build("standard", training=False)
    x = activations(TOKENS)
    before = evaluate_activations(sae, x)
    sae.fold_W_dec_norm()
    after = evaluate_activations(sae, x)
    assert after.norm_ratio_median == pytest.approx(before.norm_ratio_median, rel=1e-5)
    assert after.centered_epsilon_lbo_mean == pytest.approx(before.centered_epsilon_lbo_mean, rel=1e-4)


@pytest.mark.parametrize("architecture", ["standard", "matching_pursuit"])
def test_a_decoder_bias_that_is_not_taken_off_the_input(architecture):
    sae = build(architecture, training=True, apply_b_dec_to_input=False)
    space = SAESpace(sae)
    # The tied decoder of matching pursuit then adds none, and its bias is no feature.
    assert (space.b_dec is None) == (architecture == "matching_pursuit")
    x = activations(TOKENS)
    result = evaluate_activations(sae, x)
    bias = None if architecture == "matching_pursuit" else sae.b_dec
    features = feature_norm(sae.encode(x), sae.W_dec, bias).detach().double()
    torch.testing.assert_close(torch.tensor(result.tokens.feature_norm), features, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("heads_first", [True, False])
def test_hook_z_activations_with_and_without_their_head_axis(training, heads_first):
    sae = build("standard", training=training, reshape_activations="hook_z")
    x = activations(5, 6)
    split = x.unflatten(-1, (3, 4))
    a, b = (evaluate_activations(sae, each) for each in ((split, x) if heads_first else (x, split)))
    assert a == b
    plain = build("standard", training=training)
    plain.load_state_dict(sae.state_dict())
    assert evaluate_activations(plain, x) == a
    if not training:  # its own reshaping is as it was
        assert sae.hook_z_reshaping_mode
        assert sae(split).shape == split.shape


def test_hooks_on_the_sae_stay_and_ours_are_gone():
    sae = build("standard", training=False)
    calls = []
    sae.hook_sae_acts_post.add_hook(lambda tensor, hook: calls.append(hook.name))
    evaluate_activations(sae, activations(4))
    evaluate_activations(sae, activations(4))
    assert calls == ["hook_sae_acts_post"] * 2
    assert len(sae.hook_sae_acts_post.fwd_hooks) == 1
    assert not sae.hook_sae_input.fwd_hooks
    assert not sae.hook_sae_recons.fwd_hooks


def attach(sae: SAE, how: str) -> SAE:
    """The SAE as it is after it was in a model, in one way or another."""
    model = HookedSAETransformer(TINY)
    model.add_sae(sae, use_error_term=how == "error term")
    model(torch.tensor([[1, 2, 3]]))
    if how == "taken off again":
        model.reset_saes()
    return copy.deepcopy(sae) if how == "a copy" else sae


@pytest.mark.parametrize(
    ("architecture", "training"),
    [(name, training) for training, names in ((True, TRAINING), (False, INFERENCE)) for name in names],
)
def test_an_sae_that_was_attached_to_a_model_is_judged_as_before(architecture, training):
    sae = build(architecture, training=training)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_pre"
    x = activations(TOKENS)
    before = evaluate_activations(sae, x)
    assert evaluate_activations(attach(sae, "taken off again"), x) == before
    assert sae.hook_sae_input.name == "blocks.0.hook_resid_pre.hook_sae_input"


@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
@pytest.mark.parametrize("how", ["still there", "error term", "a copy"])
def test_however_it_is_attached(how, normalization):
    sae = build("top_afa", training=False, normalize_activations=normalization)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_pre"
    x = activations(TOKENS)
    before = evaluate_activations(sae, x)
    attached = attach(sae, how)
    assert evaluate_activations(attached, x) == before
    assert isinstance(attached, SAE)


def test_on_all_heads_of_a_model_it_is_attached_to():
    sae = build("standard", training=False, reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    x = activations(5, 6).unflatten(-1, (3, 4))
    before = evaluate_activations(sae, x)
    assert evaluate_activations(attach(sae, "still there"), x) == before
    assert sae(x).shape == x.shape


def test_the_model_s_own_hooks_in_it_stay():
    sae = build("standard", training=False)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_pre"
    model, seen = HookedSAETransformer(TINY), []
    look = ("blocks.0.hook_resid_pre.hook_sae_acts_post", lambda acts, hook: seen.append(acts.shape[0]))
    with model.saes(saes=[sae]), model.hooks([look]):
        evaluate_activations(sae, activations(3))
        model(torch.tensor([[1, 2]]))
    assert seen == [3, 1]


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_what_was_encoded_before_can_still_be_decoded(normalization):
    sae = build("topk", training=False, normalize_activations=normalization)
    x = activations(5)
    expected = sae(x)
    acts = sae.encode(x)
    evaluate_activations(sae, activations(7))
    torch.testing.assert_close(sae.decode(acts), expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("leaf", [True, False])
def test_activations_that_require_grad_are_judged_without_their_graph(normalization, leaf):
    sae = build("standard", training=True, normalize_activations=normalization)
    x = activations(TOKENS)
    with_grad = x.clone().requires_grad_() * (1 if leaf else torch.ones(()))
    options = {"outlier_norm_multiple": 3.0}
    assert evaluate_activations(sae, with_grad, **options) == evaluate_activations(sae, x, **options)
    assert not SAEJudge(sae, **options).space.rows(with_grad).requires_grad


def test_layer_norm_norms_can_be_seen_in_raw_units():
    sae = build("top_afa", training=False, normalize_activations="layer_norm")
    x = activations(200)
    constant = evaluate_activations(sae, x)
    raw = evaluate_activations(sae, x, rescale_by_token_std=True)
    assert constant.pearson is None
    assert raw.pearson is not None
    std = x.std(-1)
    centered = (x - x.mean(-1, keepdim=True)).norm(dim=-1).double()
    torch.testing.assert_close(torch.tensor(raw.tokens.dense_norm), centered, rtol=1e-3, atol=0)
    expected_error = torch.tensor(constant.tokens.squared_error) * std.double() ** 2
    torch.testing.assert_close(torch.tensor(raw.tokens.squared_error), expected_error, rtol=1e-3, atol=1e-7)
    assert raw.norm_ratio_median == pytest.approx(constant.norm_ratio_median, rel=1e-9)
    assert raw.nmse_median == pytest.approx(constant.nmse_median, rel=1e-9)
    # What they are multiplied by is beside them, unless they are already.
    torch.testing.assert_close(torch.tensor(constant.tokens.token_std), std.double(), rtol=1e-5, atol=0)
    assert raw.tokens.token_std.isna().all()
    assert evaluate_activations(build("standard", training=False), x).tokens.token_std.isna().all()
    with pytest.raises(ValueError, match=r"rescale_by_token_std.*layer_norm.*'none'"):
        evaluate_activations(build("standard", training=False), x, rescale_by_token_std=True)


@pytest.mark.parametrize("normalization", ["expected_average_only_in", "covariance_whitening"])
def test_scaling_outside_of_the_sae_is_asked_for(normalization):
    sae = build("standard", training=True, normalize_activations=normalization)
    x = activations(500)
    with pytest.raises(ValueError, match=f"{normalization}.*pass activation_scaler"):
        evaluate_activations(sae, x)
    scaler = ActivationScaler()
    if normalization == "expected_average_only_in":
        scaler.estimate_scaling_factor(D_IN, iter([x]), 1)
    else:
        scaler.estimate_whitening(D_IN, iter([x]), 1)
    outside = evaluate_activations(sae, x, activation_scaler=scaler)
    scaled = evaluate_activations(sae, scaler(x), activation_scaler=ActivationScaler())
    # Only at the hook point are they not the same.
    raw = {"explained_variance_raw": outside.explained_variance_raw}
    assert outside == scaled.with_values(raw)
    assert outside != evaluate_activations(sae, x, activation_scaler=ActivationScaler()).with_values(raw)


def test_a_folded_scaling_factor_gives_the_same_ratios():
    sae = build("standard", training=True, normalize_activations="expected_average_only_in")
    x, scaler = activations(50), ActivationScaler(scaling_factor=2.5)
    outside = evaluate_activations(sae, x, activation_scaler=scaler)
    sae.fold_activation_norm_scaling_factor(2.5)
    inside = evaluate_activations(sae, x)
    assert inside.norm_ratio_median == pytest.approx(outside.norm_ratio_median, rel=1e-5)
    assert inside.dense_norm_median == pytest.approx(outside.dense_norm_median / 2.5, rel=1e-5)
    assert inside.explained_variance == pytest.approx(outside.explained_variance, rel=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_saes_of_other_dtypes(dtype):
    sae = build("standard", training=False)
    x = activations(40)
    exact = evaluate_activations(sae, x)
    other = evaluate_activations(sae.to(dtype=getattr(torch, dtype)), x)
    assert other.norm_ratio_median == pytest.approx(exact.norm_ratio_median, rel=0.02)


def test_batches_of_any_size_and_iterables_give_one_result():
    sae = build("standard", training=False)
    x = activations(4, 25)
    whole = evaluate_activations(sae, x)
    for other in (
        evaluate_activations(sae, x, batch_size=7),
        evaluate_activations(sae, iter(x)),
        evaluate_activations(sae, [x[:1], x[1:].flatten(0, 1)]),
    ):
        assert known(other) == pytest.approx(known(whole), rel=1e-5)


# ---- outliers


def test_outliers_are_reported_with_and_without():
    sae = build("standard", training=False)
    x = activations(300)
    x[::50] *= 100
    result = evaluate_activations(sae, x, outlier_norm_multiple=5.0, batch_size=64)
    norms = x.norm(dim=-1)
    assert result.outlier_norm == pytest.approx(5 * norms.double().quantile(0.5).item(), rel=1e-6)
    assert result.n_tokens == 300
    assert result.without_outliers.n_tokens == 294
    kept = evaluate_activations(sae, x[norms <= result.outlier_norm])
    assert known(result.without_outliers) == pytest.approx(known(kept), rel=1e-5)
    everything = known(evaluate_activations(sae, x))
    assert {name: result.to_dict()[name] for name in everything} == pytest.approx(everything, rel=1e-5)


def test_the_median_norm_is_that_of_the_first_tokens(monkeypatch):
    monkeypatch.setattr("sae_lens_afa.evals.judge.CALIBRATION_TOKENS", 100)
    sae = build("standard", training=False)
    x = activations(400)
    x[100:] *= 10
    result = evaluate_activations(sae, x, outlier_norm_multiple=3.0, batch_size=50)
    assert result.outlier_norm == pytest.approx(3 * x[:100].norm(dim=-1).double().quantile(0.5).item(), rel=1e-6)
    assert result.without_outliers.n_tokens == int((x.norm(dim=-1) <= result.outlier_norm).sum())
    assert result.tokens.token_index.tolist() == list(range(400))


def test_nothing_left_without_outliers_is_an_error():
    with pytest.raises(ValueError, match="all 9 are outliers by outlier_norm_multiple=1e-06"):
        evaluate_activations(build("standard", training=False), activations(9), outlier_norm_multiple=1e-6)


# ---- refusals


@pytest.mark.parametrize("sae_class", [Transcoder, SkipTranscoder, JumpReLUTranscoder, JumpReLUSkipTranscoder])
def test_transcoders_are_refused_and_told_why(sae_class):
    config = SAE_CLASS_REGISTRY[next(name for name, (entry, _) in SAE_CLASS_REGISTRY.items() if entry is sae_class)][1]
    sae = sae_class(config(d_in=D_IN, d_sae=D_SAE, d_out=D_IN, apply_b_dec_to_input=False))
    with pytest.raises(TypeError, match="features reconstruct another activation than the one it reads"):
        evaluate_activations(sae, activations(3))


def test_temporal_saes_are_refused_and_told_why():
    sae = lens.TemporalSAE(lens.TemporalSAEConfig(d_in=8, d_sae=64, n_heads=1, kval_topk=4))
    with pytest.raises(TypeError, match="predicted from earlier tokens"):
        evaluate_activations(sae, torch.randn(3, 8))


def test_a_decoder_that_is_not_linear_is_refused():
    class Squaring(lens.StandardSAE):
        def decode(self, feature_acts):
            return super().decode(feature_acts**2)

    sae = randomise(Squaring(lens.StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)))
    with pytest.raises(ValueError, match="Squaring does not decode as f @ W_dec"):
        evaluate_activations(sae, activations(3))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(3, D_IN + 1), ValueError, r"d_in = 12 on its last axis, got \[3, 13\]"),
        (torch.ones(0, D_IN), ValueError, r"an empty batch: activations have shape \[0, 12\]"),
        ([], ValueError, "no tokens to judge: none given"),
        (torch.ones(3, D_IN, dtype=torch.long), TypeError, "floating-point activations"),
        ([[1.0] * D_IN], TypeError, "iterable of tensors, got a list"),
        (torch.full((3, D_IN), torch.nan), ValueError, "all 3 hold a NaN"),
        (torch.ones(3, 3, 4), ValueError, "d_in = 12"),
    ],
)
def test_bad_activations_are_named(given, error, message):
    with pytest.raises(error, match=message):
        evaluate_activations(build("standard", training=False), given)


def test_nan_rows_are_counted():
    x = activations(20)
    x[3, 5] = torch.nan
    result = evaluate_activations(build("standard", training=False), x, outlier_norm_multiple=10.0)
    assert (result.n_tokens, result.n_nonfinite, result.without_outliers.n_tokens) == (19, 1, 19)


@pytest.mark.parametrize("architecture", INFERENCE)
def test_rows_with_nan_are_in_no_metric(architecture):
    sae = build(architecture, training=False)
    x = activations(20)
    bad = x.clone()
    bad[3, 5], bad[7, 0] = torch.nan, torch.inf
    kept = [i for i in range(20) if i not in (3, 7)]
    result = evaluate_activations(sae, bad)
    assert result.n_nonfinite == 2
    assert known(result.with_values({"n_nonfinite": 0})) == pytest.approx(
        known(evaluate_activations(sae, x[kept])), rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"outlier_norm_multiple": 0}, "must be > 0, got 0")],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_activations(build("standard", training=False), activations(3), **options)


def test_what_is_not_an_sae_is_refused():
    with pytest.raises(TypeError, match="expected a SAELens SAE, got Linear"):
        evaluate_activations(torch.nn.Linear(2, 2), activations(3))


def test_the_training_sae_of_top_afa_and_what_it_saves_agree(tmp_path):
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    sae.save_inference_model(tmp_path)
    x = activations(50)
    assert evaluate_activations(sae, x) == evaluate_activations(SAE.load_from_disk(tmp_path), x)


@pytest.mark.parametrize("architecture", TRAINING)
def test_an_sae_is_called_what_it_was_trained_as(architecture, tmp_path):
    build(architecture, training=True).save_inference_model(tmp_path)
    assert architecture_of(SAE.load_from_disk(tmp_path)) == architecture


def test_a_stand_in_is_called_what_it_is():
    export = export_jumprelu(build("top_afa", training=False), activations(100))
    export.cfg.metadata.training_architecture = "top_afa"
    assert architecture_of(export) == "jumprelu"
    assert architecture_of(build("standard", training=False)) == "standard"
