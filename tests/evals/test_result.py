"""AFAResult: flat names, JSON, tables."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from sae_lens_afa import AFAMetrics, AFAResult
from sae_lens_afa.reports.folder import read_report

VERSION_1 = Path(__file__).parents[1] / "data" / "evaluation_version_1.json"

FORM = [
    *(f"{name}_median" for name in ("dense_norm", "feature_norm", "norm_ratio", "activation_ratio", "epsilon_lbo")),
    *("reconstruction_ratio_median", "epsilon_lbo_mean", "frac_over_activated", "frac_under_activated"),
    *("afa_squared_error_mean", "pearson", "spearman"),
]
STREAM = [
    "n_tokens",
    "n_nonfinite",
    "n_undefined",
    "d_sae",
    "l0_mean",
    "explained_variance",
    "nmse_median",
    "nmse_mean",
]
QUANTILES = [f"{name}_{q}" for name in ("l0", "norm_ratio", "epsilon_lbo") for q in ("q05", "q25", "q75", "q95")]


def test_the_flat_dictionary_has_the_documented_names_in_both_forms(result):
    flat = result.to_dict()
    assert set(STREAM + FORM + QUANTILES + [f"centered_{name}" for name in FORM]) <= set(flat)
    assert all(value is None or isinstance(value, int | float) for value in flat.values())
    assert all(flat[name] == getattr(result, name) for name in flat)


def test_it_is_frozen(result):
    with pytest.raises(AttributeError):
        result.n_tokens = 3
    with pytest.raises(AttributeError):
        result.l0_mean = 3.0
    assert result.n_tokens == 30


def test_an_unknown_metric_is_an_error_that_names_near_ones(result):
    with pytest.raises(AttributeError, match=r"no 'l0_meen'; did you mean l0_mean"):
        result.l0_meen  # noqa: B018
    assert not hasattr(result, "nothing_like_it")
    assert {"l0_mean", "centered_spearman", "to_json"} <= set(dir(result))


def test_copies_are_equal_and_changes_are_not(result):
    for other in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other == result
        assert other.tokens.equals(result.tokens)
        assert hash(other) == hash(result)
    assert result != result.with_values({"l0_mean": 0.0})
    assert result != result.with_outliers_left_out(result, 4.5)
    with pytest.raises(ValueError, match=r"no metric has: \['l0'\]"):
        result.with_values({"l0": 0.0})


def test_its_repr_says_what_is_known(result):
    assert repr(result).startswith("AFAResult(n_tokens=30, n_nonfinite=0, d_sae=7, l0_mean=7.0")
    assert "ce_loss" not in repr(result)


def test_json_round_trips_and_writes_null_for_what_is_undefined():
    result = AFAMetrics.from_norms(torch.zeros(2), torch.ones(2), d_sae=1).compute()
    text = result.to_json()
    assert "NaN" not in text
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["norm_ratio_median"] is None
    assert data["version"] == 1
    assert AFAResult.from_json(text) == result


def test_json_keeps_the_metrics_without_outliers(result):
    both = result.with_outliers_left_out(AFAMetrics.from_norms(torch.ones(2), torch.ones(2), d_sae=7).compute(), 4.5)
    flat = both.to_dict()
    assert flat["without_outliers_n_tokens"] == 2
    assert flat["outlier_norm"] == 4.5
    assert AFAResult.from_json(both.to_json()) == both


@pytest.mark.parametrize("text", ['{"version": 2}', "{}", "[]", '{"version": null}'])
def test_another_version_is_refused(text):
    with pytest.raises(ValueError, match="reads version 1: run the evaluation again"):
        AFAResult.from_json(text)


def test_metrics_that_are_missing_are_unknown(result):
    data = result.to_dict()
    del data["l0_q05"], data["ce_loss_score"]
    assert AFAResult.from_dict(data) == result.with_values({"l0_q05": None})
    assert "5-95 %" in str(AFAResult.from_dict(data))


def test_metrics_that_are_unknown_are_left_out_and_named_once(result):
    both = result.with_outliers_left_out(result, 4.5)
    with pytest.warns(UserWarning, match=r"not know are left out: \['new', 'without_outliers_newer'\]") as caught:
        assert AFAResult.from_dict({**both.to_dict(), "new": 1.0, "without_outliers_newer": 2}) == both
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["n_tokens", "d_sae", "without_outliers_n_tokens"])
def test_without_its_counts_it_is_no_result(result, name):
    data = result.with_outliers_left_out(result, 4.5).to_dict()
    del data[name]
    with pytest.raises(ValueError, match=rf"\['{name}'\] missing; run the evaluation again"):
        AFAResult.from_dict(data)


def test_evaluations_of_earlier_versions_are_read(tmp_path):
    """One of the demo, and one of a version that knew neither quantiles of L0 nor the cross-entropy."""
    data = json.loads(VERSION_1.read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(data))
    assert read_report(tmp_path).results["demo"].l0_q05 == data["saes"]["demo"]["figures"]["l0_q05"]
    metrics = data["saes"]["demo"]["figures"]
    data["saes"]["demo"]["figures"] = {
        name: value for name, value in metrics.items() if not name.startswith(("ce_", "l0_q", "nmse_q"))
    }
    (tmp_path / "metrics.json").write_text(json.dumps(data))
    old = read_report(tmp_path).results["demo"]
    assert old.l0_q05 is old.ce_loss_score is None
    assert old.l0_mean == metrics["l0_mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("saes"), r"metrics.json has no 'saes'; run the evaluation again"),
        (lambda data: data["saes"]["demo"].pop("figures"), r"metrics.json has no 'figures'"),
        (lambda data: data["saes"]["demo"]["figures"].pop("d_sae"), r"metrics.json: .*\['d_sae'\] missing"),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, change, message):
    data = json.loads(VERSION_1.read_text())
    change(data)
    (tmp_path / "metrics.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path)


def test_a_row_per_result(result):
    row = result.to_dataframe("mine")
    assert list(row.index) == ["mine"]
    assert row.loc["mine", "l0_mean"] == result.l0_mean
    assert len(result.tokens) == 30
