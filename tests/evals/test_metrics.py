"""AFAMetrics against definitions, published norms and its own invariants."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_afa import AFAMetrics, AFAResult
from sae_lens_afa.functional import coherence, epsilon_lbo, feature_norm

D_IN, D_SAE = 6, 10
seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int, *leading: int) -> dict[str, torch.Tensor]:
    W_dec, b_dec = draw(1, D_SAE, D_IN), draw(2, D_IN)
    acts = draw(seed, *leading, D_SAE).relu()
    recons = acts @ W_dec + b_dec
    dense = recons + 0.3 * draw(seed + 1, *leading, D_IN)
    return {"dense": dense, "feature_acts": acts, "W_dec": W_dec, "b_dec": b_dec, "recons": recons}


def judged(*batches: dict[str, torch.Tensor], **options) -> AFAResult:
    metrics = AFAMetrics(D_SAE, **options)
    for each in batches:
        metrics.update(**each)
    return metrics.compute()


def known(result: AFAResult) -> dict[str, float]:
    return {name: value for name, value in result.to_dict().items() if value is not None}


def assert_same(a: AFAResult, b: AFAResult, rel: float = 1e-12) -> None:
    assert known(a) == pytest.approx(known(b), rel=rel, abs=1e-14)


def test_metrics_are_their_definitions():
    x = batch(3, 7, 5)
    result = judged(x)
    z, f = x["dense"].norm(dim=-1), feature_norm(x["feature_acts"], x["W_dec"], x["b_dec"])
    z_hat = x["recons"].norm(dim=-1)
    error = (x["recons"] - x["dense"]).square().sum(-1)
    spread = (x["dense"] - x["dense"].mean((0, 1))).square().sum()
    eps = epsilon_lbo(z, f, D_SAE)
    expected = {
        "n_tokens": 35,
        "n_nonfinite": 0,
        "d_sae": D_SAE,
        "l0_mean": (x["feature_acts"] != 0).sum(-1).double().mean().item(),
        "explained_variance": 1 - (error.sum() / spread).item(),
        "nmse_median": (error / z**2).quantile(0.5).item(),
        "nmse_mean": (error / z**2).mean().item(),
        "dense_norm_median": z.quantile(0.5).item(),
        "feature_norm_median": f.quantile(0.5).item(),
        "norm_ratio_median": (f / z).quantile(0.5).item(),
        "norm_ratio_q05": (f / z).quantile(0.05).item(),
        "activation_ratio_median": (f / z_hat).quantile(0.5).item(),
        "reconstruction_ratio_median": (z_hat / z).quantile(0.5).item(),
        "epsilon_lbo_median": eps.quantile(0.5).item(),
        "epsilon_lbo_mean": eps.mean().item(),
        "epsilon_lbo_q95": eps.quantile(0.95).item(),
        "frac_over_activated": (f > z).double().mean().item(),
        "frac_under_activated": (f < z).double().mean().item(),
        "afa_squared_error_mean": (f - z).square().mean().item(),
        "pearson": np.corrcoef(z.flatten(), f.flatten())[0, 1],
        "spearman": np.corrcoef(z.flatten().argsort().argsort(), f.flatten().argsort().argsort())[0, 1],
    }
    assert {name: result.to_dict()[name] for name in expected} == pytest.approx(expected, rel=1e-10)


def test_the_centred_form_leaves_the_bias_out_of_both_norms():
    x = batch(3, 40)
    centered = {**x, "dense": x["dense"] - x["b_dec"], "recons": x["recons"] - x["b_dec"], "b_dec": torch.zeros(D_IN)}
    a, b = judged(x).to_dict(), judged(centered).to_dict()
    for name in b:
        if f"centered_{name}" in a:
            assert a[f"centered_{name}"] == pytest.approx(b[name], rel=1e-10), name


def test_an_sae_without_a_bias_has_one_form():
    x = {**batch(3, 40), "b_dec": None}
    result = judged(x).to_dict()
    assert all(result[f"centered_{name}"] == result[name] for name in result if f"centered_{name}" in result)


@settings(max_examples=25)
@given(seeds, st.integers(1, 8))
def test_an_orthonormal_dictionary_and_the_true_code_give_epsilon_lbo_zero(seed, tokens):
    W_dec = torch.linalg.qr(draw(seed, D_IN, D_IN))[0]
    acts = draw(seed + 1, tokens, D_IN)  # of both signs
    metrics = AFAMetrics(D_IN)
    metrics.update(acts @ W_dec, acts, W_dec, torch.zeros(D_IN, dtype=torch.float64), acts @ W_dec)
    result = metrics.compute()
    assert result.epsilon_lbo_q95 == pytest.approx(0, abs=1e-13)
    assert result.activation_ratio_median == pytest.approx(1)


@settings(max_examples=25)
@given(seeds)
def test_folding_decoder_norms_changes_nothing(seed):
    x = batch(seed, 9)
    norms = x["W_dec"].norm(dim=-1)
    unit = x["W_dec"] / norms[:, None]
    assert_same(judged(x), judged({**x, "feature_acts": x["feature_acts"] * norms, "W_dec": unit}), rel=1e-9)
    metrics = AFAMetrics(D_SAE)
    metrics.update(**{**x, "feature_acts": x["feature_acts"] * norms}, acts_include_decoder_norm=True)
    assert_same(judged(x), metrics.compute(), rel=1e-9)


@settings(max_examples=25)
@given(seeds)
def test_the_norms_differ_by_no_more_than_coherence_allows(seed):
    W_dec = torch.nn.functional.normalize(draw(seed, D_SAE, 40), dim=-1)
    acts = draw(seed + 1, 20, D_SAE)
    metrics = AFAMetrics(D_SAE)
    metrics.update(acts @ W_dec, acts, W_dec)
    tokens, eps = metrics.tokens(), coherence(W_dec).max
    difference = (tokens.dense_norm**2 - tokens.feature_norm**2).abs()
    # float32 products inside coherence().
    assert (difference <= (eps + 1e-6) * (D_SAE - 1) * tokens.feature_norm**2).all()
    assert tokens.epsilon_lbo.max() <= eps + 1e-6


@settings(max_examples=25)
@given(seeds, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_splits_merge_to_one_pass_in_any_order(seed, sizes):
    whole = batch(seed, sum(sizes))
    tokens = ("dense", "feature_acts", "recons")
    parts = list(zip(*(whole[name].split(sizes) for name in tokens), strict=True))
    split = [AFAMetrics(D_SAE) for _ in sizes]
    for metrics, part in zip(split, parts, strict=True):
        metrics.update(**{**whole, **dict(zip(tokens, part, strict=True))})
    forward, backward = AFAMetrics(D_SAE), AFAMetrics(D_SAE)
    for metrics in split:
        forward.merge(metrics)
    for metrics in reversed(split):
        backward.merge(metrics)
    one = judged(whole)
    assert_same(forward.compute(), one, rel=1e-9)
    assert_same(backward.compute(), one, rel=1e-9)


def test_merging_leaves_the_other_as_it_is_and_survives_a_trip_between_processes():
    a, b = AFAMetrics(D_SAE), AFAMetrics(D_SAE)
    a.update(**batch(1, 5))
    b.update(**batch(2, 6))
    before = b.compute()
    merged = a.merge(pickle.loads(pickle.dumps(b)))
    assert merged is a
    assert merged.n_tokens == 11
    assert b.compute() == before


def test_an_empty_stream_is_neutral_in_a_merge():
    a, empty = AFAMetrics(D_SAE), AFAMetrics(D_SAE)
    a.update(**batch(1, 5))
    assert_same(copy.deepcopy(empty).merge(a).compute(), a.compute())
    assert_same(copy.deepcopy(a).merge(empty).compute(), a.compute())


def test_beyond_the_exact_tokens_a_seeded_sample_does_not_depend_on_order():
    parts = [batch(seed, 500) for seed in range(8)]

    def merged(order: list[int], seed: int) -> AFAResult:
        metrics = AFAMetrics(D_SAE, max_exact_tokens=300, seed=seed)
        for i in order:
            other = AFAMetrics(D_SAE, max_exact_tokens=300, seed=seed)
            other.update(**parts[i])
            metrics.merge(other)
        return metrics.compute()

    forward, backward = merged(list(range(8)), 0), merged(list(range(7, -1, -1)), 0)
    assert_same(forward, backward, rel=1e-9)
    exact = judged(*parts)
    assert len(forward.tokens) == 300
    assert forward.n_tokens == 4000
    assert forward.epsilon_lbo_mean == pytest.approx(exact.epsilon_lbo_mean, rel=1e-9)
    # The median of 300 of 4000: a standard error of about 3 percentage points of rank.
    ranks = (exact.tokens.norm_ratio < forward.norm_ratio_median).mean()
    assert 0.4 < ranks < 0.6
    assert merged(list(range(8)), 1).norm_ratio_median != forward.norm_ratio_median


def test_equal_tokens_are_sampled_one_by_one():
    one = batch(0, 1)
    metrics = AFAMetrics(D_SAE, max_exact_tokens=100)
    for seed in range(10):
        metrics.update(**one)
        metrics.update(**batch(seed, 19))
    same = (metrics.tokens().dense_norm == one["dense"].norm()).sum()
    assert 0 <= same < 10 + 1
    assert len(metrics.tokens()) == 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_float32_within_rounding(dtype):
    x = {name: tensor.float() for name, tensor in batch(5, 64).items()}
    exact = judged({name: tensor.to(dtype).float() for name, tensor in x.items()})
    low = judged({name: tensor.to(dtype) for name, tensor in x.items()})
    assert_same(low, exact, rel=1e-6)
    assert known(judged(x))["norm_ratio_median"] == pytest.approx(low.norm_ratio_median, rel=0.01)


@pytest.mark.parametrize("leading", [(12,), (3, 4), (2, 3, 2)])
def test_sparse_activations_are_the_dense_ones(leading):
    x = batch(7, *leading)
    acts = x["feature_acts"] * (x["feature_acts"] > 0.5) * torch.where(draw(8, *leading, D_SAE) > 0, 1.0, -1.0)
    sparse = acts.to_sparse_coo()
    explicit_zeros = torch.sparse_coo_tensor(sparse.indices(), sparse.values() * 0, sparse.shape) + sparse
    for form in (sparse, explicit_zeros):
        assert_same(judged({**x, "feature_acts": form}), judged({**x, "feature_acts": acts}), rel=1e-12)


def test_an_update_leaves_its_inputs_as_they_are():
    x = batch(7, 5)
    before = copy.deepcopy(x)
    judged(x)
    for name, tensor in x.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_blocks_do_not_show(monkeypatch):
    x = batch(7, 300)
    whole = judged(x)
    monkeypatch.setattr("sae_lens_afa.evals.token_norms._CPU_ELEMENTS", 3 * D_SAE)
    monkeypatch.setattr("sae_lens_afa.evals.token_norms._BLOCK_ELEMENTS", 7 * D_IN)
    assert_same(judged(x), whole, rel=1e-12)


def test_norms_whose_squares_leave_float32_are_exact():
    x = {name: tensor.float() for name, tensor in batch(5, 8).items()}
    huge = {name: tensor * (1 if name == "W_dec" else 1e25) for name, tensor in x.items()}
    a, b = judged(x), judged(huge)
    assert b.epsilon_lbo_median == pytest.approx(a.epsilon_lbo_median, rel=1e-5)
    assert b.explained_variance == pytest.approx(a.explained_variance, rel=1e-5)


# ---- tokens without a metric


def test_rows_with_nan_or_infinity_are_counted_and_left_out():
    x = batch(9, 6)
    bad = {name: tensor.clone() for name, tensor in x.items()}
    bad["dense"][1, 0], bad["feature_acts"][2, 3], bad["recons"][4, 1] = np.nan, np.inf, np.nan
    kept = {**x, **{name: x[name][[0, 3, 5]] for name in ("dense", "feature_acts", "recons")}}
    result = judged(bad)
    assert result.n_nonfinite == 3
    assert known(result) == pytest.approx({**known(judged(kept)), "n_nonfinite": 3}, rel=1e-12)


def test_only_nonfinite_tokens_are_an_error_that_says_so():
    x = batch(9, 2)
    with pytest.raises(ValueError, match="no tokens to judge: all 2 hold a NaN or an infinity"):
        judged({**x, "recons": x["recons"] * np.nan})


def test_tokens_without_features_or_norm_are_undefined_and_left_out():
    x = {**batch(9, 4), "b_dec": torch.zeros(D_IN, dtype=torch.float64)}
    x["feature_acts"][0] = 0
    x["dense"][1] = 0
    result = judged(x)
    assert result.n_undefined == 2
    assert result.n_tokens == 4
    assert result.frac_under_activated is not None
    assert result.tokens.epsilon_lbo.isna().sum() == 1


def test_one_feature_has_no_pairs():
    metrics = AFAMetrics(1)
    metrics.update(torch.ones(3, 2), torch.ones(3, 1), torch.ones(1, 2))
    result = metrics.compute()
    assert result.epsilon_lbo_median is None
    assert result.epsilon_lbo_mean is None
    assert result.norm_ratio_median == pytest.approx(1)
    assert result.n_undefined == 3


def test_norms_that_hardly_vary_have_no_correlation():
    x = batch(9, 50)
    constant = {**x, "dense": torch.nn.functional.normalize(x["dense"], dim=-1) * (1 + 1e-5 * draw(1, 50, 1))}
    assert judged(constant).pearson is None
    assert judged(constant).spearman is None
    assert judged(x).pearson is not None


def test_equal_vectors_have_no_variance_to_explain():
    x = batch(9, 1)
    same = {**x, **{name: x[name].repeat(1000, 1) for name in ("dense", "feature_acts", "recons")}}
    assert judged(same).explained_variance is None


def test_explained_variance_does_not_lose_digits_to_a_large_mean():
    x = batch(9, 200)
    x["dense"] += 1e4
    x["recons"] += 1e4
    spread = (x["dense"] - x["dense"].mean(0)).square().sum()
    expected = 1 - ((x["recons"] - x["dense"]).square().sum() / spread).item()
    assert judged(x).explained_variance == pytest.approx(expected, rel=1e-6)


# ---- explained variance at the hook point


def at_hook(seed: int, tokens: int) -> dict[str, torch.Tensor]:
    """A batch whose dense vectors are normalised: x = 5 z + 2."""
    x = batch(seed, tokens)
    return {**x, "raw": (5 * x["dense"] + 2, 5 * x["recons"] + draw(seed + 2, tokens, D_IN))}


def test_explained_variance_at_the_hook_point_is_its_definition():
    parts = [at_hook(1, 30), at_hook(7, 50)]
    x, x_hat = (torch.cat(vectors) for vectors in zip(*(part["raw"] for part in parts), strict=True))
    expected = 1 - ((x_hat - x).square().sum() / (x - x.mean(0)).square().sum()).item()
    metrics, other = AFAMetrics(D_SAE), AFAMetrics(D_SAE)
    metrics.update(**parts[0])
    other.update(**parts[1])
    result = metrics.merge(other).compute()
    assert result.explained_variance_raw == pytest.approx(expected, rel=1e-10)
    assert_same(result, judged(*parts))
    # Nothing else depends on it.
    plain = judged(*({name: value for name, value in part.items() if name != "raw"} for part in parts))
    assert judged(*parts) == plain.with_values({"explained_variance_raw": judged(*parts).explained_variance_raw})


def test_tokens_left_out_are_not_in_it():
    whole = at_hook(1, 6)
    keep = [0, 2, 3, 5]
    tokens = {name: whole[name].clone() for name in ("dense", "feature_acts", "recons")}
    tokens["dense"][[1, 4]] = torch.nan
    kept = {name: whole[name][keep] for name in tokens} | {"raw": tuple(vectors[keep] for vectors in whole["raw"])}
    expected = judged({**whole, **kept}).explained_variance_raw
    assert judged({**whole, **tokens}).explained_variance_raw == pytest.approx(expected, rel=1e-12)


def test_it_is_unknown_unless_every_token_gives_it():
    with_raw, without = at_hook(1, 6), batch(2, 4)
    assert judged(without).explained_variance_raw is None
    assert judged(with_raw, without).explained_variance_raw is None
    assert judged(with_raw, without).explained_variance is not None


# ---- published norms


def published(golden: dict, norms, layer: int | None) -> AFAResult:
    rows = norms if layer is None else norms[norms.layer == layer]
    nmse = (rows.l_recon / rows.norm_z**2).to_numpy()
    return AFAMetrics.from_norms(rows.norm_z.to_numpy(), rows.norm_f.to_numpy(), nmse, d_sae=golden["h"]).compute()


PUBLISHED = {
    "elbo_median": "epsilon_lbo_median",
    "elbo_mean": "epsilon_lbo_mean",
    "nmse_median": "nmse_median",
    "nmse_mean": "nmse_mean",
    "frac_over_activated": "frac_over_activated",
    "frac_under_activated": "frac_under_activated",
    "norm_z_median": "dense_norm_median",
    "norm_f_median": "feature_norm_median",
    "norm_ratio_f_over_z_median": "norm_ratio_median",
    "afa_sq_err_mean": "afa_squared_error_mean",
    "pearson_z_f": "pearson",
}


def test_published_norms_give_the_published_metrics_of_every_layer(golden_zf, golden_norms):
    medians = {}
    for layer in golden_zf["layers"]:
        result = published(golden_zf, golden_norms, layer["layer"])
        assert result.n_tokens == layer["n"]
        assert {ours: getattr(result, ours) for ours in PUBLISHED.values()} == pytest.approx(
            {ours: layer[theirs] for theirs, ours in PUBLISHED.items()}, rel=1e-5
        )
        medians[layer["layer"]] = (result.epsilon_lbo_median, result.nmse_median)
    for i, name in enumerate(("elbo", "nmse")):
        assert min(medians, key=lambda layer: medians[layer][i]) == golden_zf[f"best_layer_{name}"]
        assert max(medians, key=lambda layer: medians[layer][i]) == golden_zf[f"worst_layer_{name}"]


def test_published_norms_give_the_published_overall_metrics(golden_zf, golden_norms):
    result, overall = published(golden_zf, golden_norms, None), golden_zf["overall"]
    assert result.pearson == pytest.approx(overall["pearson_norm_z_norm_f"], rel=1e-5)
    assert result.spearman == pytest.approx(overall["spearman_norm_z_norm_f"], rel=1e-5)
    assert result.epsilon_lbo_median == pytest.approx(overall["elbo_median"], rel=1e-5)
    assert result.frac_over_activated == pytest.approx(overall["frac_over_activated"], rel=1e-5)


def test_norms_alone_leave_the_rest_unknown():
    result = AFAMetrics.from_norms(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), d_sae=5).compute()
    assert result.frac_over_activated == 0.5
    unknown = {name for name, value in result.to_dict().items() if value is None}
    assert {"l0_mean", "explained_variance", "nmse_median", "activation_ratio_median"} < unknown
    assert {name for name in result.to_dict() if name.startswith("centered_")} < unknown


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": torch.ones(0, D_IN), "feature_acts": torch.ones(0, D_SAE), "recons": None}, "an empty batch.*0, 6"),
        ({"dense": torch.ones(4, D_IN + 1)}, r"dense.*d_in = 6.*\[4, 7\]"),
        ({"feature_acts": torch.ones(4, D_SAE + 1)}, r"feature_acts.*d_sae = 10.*\[4, 11\]"),
        ({"feature_acts": torch.ones(5, D_SAE)}, "agree in all axes but the last"),
        ({"feature_acts": torch.ones(4, D_SAE).to_mkldnn()}, "sparse COO"),
        ({"W_dec": torch.ones(D_SAE + 1, D_IN)}, "W_dec must have d_sae = 10 rows"),
        ({"W_dec": torch.ones(D_SAE)}, "W_dec must be a matrix"),
        ({"b_dec": torch.ones(D_IN + 1)}, "b_dec.*d_in = 6"),
        ({"recons": torch.ones(3, D_IN)}, r"recons must have the shape of dense, \[4, 6\]"),
        ({"raw": (torch.ones(4, D_IN), torch.ones(3, D_IN))}, r"raw must be two .* shape of dense, \[4, 6\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        judged({**batch(1, 4), **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AFAMetrics(0), "d_sae must be at least 1"),
        (lambda: AFAMetrics(3, max_exact_tokens=0), "max_exact_tokens must be at least 1"),
        (lambda: AFAMetrics(3).compute(), "no tokens to judge: none given"),
        (lambda: AFAMetrics(3).merge(AFAMetrics(4)), "different d_sae: 3 and 4"),
        (lambda: AFAMetrics(3).merge(AFAMetrics(3, seed=1)), "different seed"),
        (lambda: (metrics := AFAMetrics(3)).merge(metrics), "merged with itself"),
        (lambda: AFAMetrics.from_norms(torch.ones(2), torch.ones(3), d_sae=4), r"one length, got shapes \[2\], \[3\]"),
        (lambda: AFAMetrics.from_norms(torch.ones(0), torch.ones(0), d_sae=4), "vectors of norms are empty"),
        (lambda: AFAMetrics.from_norms(-torch.ones(2), torch.ones(2), d_sae=4), "norm is negative"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reconstructions_come_with_every_batch_or_with_none():
    metrics = AFAMetrics(D_SAE)
    metrics.update(**batch(1, 4))
    without = {**batch(2, 4), "recons": None}
    with pytest.raises(ValueError, match="recons in every update or in none"):
        metrics.update(**without)
    other = AFAMetrics(D_SAE)
    other.update(**without)
    with pytest.raises(ValueError, match="different columns"):
        metrics.merge(other)


@pytest.mark.parametrize("leaf", [True, False])
def test_tensors_that_require_grad_give_the_same_metrics(leaf):
    plain = batch(3, 20)
    with_grad = {name: x.clone().requires_grad_() * (1 if leaf else torch.ones(())) for name, x in plain.items()}
    assert judged(with_grad) == judged(plain)
    z, f = torch.rand(5), torch.rand(5)
    norms = AFAMetrics.from_norms(z.clone().requires_grad_(), f.clone().requires_grad_(), d_sae=3).compute()
    assert norms == AFAMetrics.from_norms(z, f, d_sae=3).compute()
