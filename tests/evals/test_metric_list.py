"""The list of metrics, and a metric that is added to it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa import AFAEvaluator, AFAMetrics, AFAResult
from sae_lens_afa.evals import results_table
from sae_lens_afa.evals.metric_list import (
    CARD,
    CENTERED,
    METRICS,
    PAPER,
    SWEEPS,
    Metric,
    metrics_shown_in,
)

FORMS = (PAPER, CENTERED)


@pytest.fixture
def added() -> Iterator[list[Metric]]:
    """Metrics that the package does not have: of both forms, per token, and one of the whole stream."""
    metrics = [
        Metric(
            name=f"{form}norm_gap_{summary}", title=f"  {form}norm gap, {summary}", heading="gap", style=".3f",
            shown_in=(CARD, SWEEPS) if form == PAPER else (), form=form, column=f"{form}norm_gap", summary=summary,
            per_token=lambda token: token.dense_norm - token.feature_norm,
        )
        for form in FORMS
        for summary in ("median", "mean")
    ]  # fmt: skip
    metrics.append(
        Metric(name="tokens_per_feature", of_stream=lambda stream, _: stream.sums.n_tokens / stream.sums.d_sae)
    )
    METRICS.extend(metrics)
    yield metrics
    del METRICS[-len(metrics) :]


def streams() -> tuple[AFAMetrics, AFAMetrics]:
    parts = (AFAMetrics(7), AFAMetrics(7))
    W_dec, b_dec = torch.randn(7, 4), torch.randn(4)
    for metrics, tokens in zip(parts, (30, 20), strict=True):
        x = torch.randn(tokens, 4)
        metrics.update(x, torch.rand(tokens, 7), W_dec, b_dec, 0.9 * x)
    return parts


def test_a_new_metric_is_everywhere(added):
    one, other = streams()
    alone = one.compute()
    result = one.merge(other).compute()
    for form in FORMS:
        gaps = result.tokens[f"{form}dense_norm"] - result.tokens[f"{form}feature_norm"]
        assert result.tokens[f"{form}norm_gap"].tolist() == gaps.tolist()
        assert getattr(result, f"{form}norm_gap_median") == gaps.median()
        assert result.to_dict()[f"{form}norm_gap_mean"] == pytest.approx(gaps.mean())
        assert getattr(alone, f"{form}norm_gap_mean") == pytest.approx(alone.tokens[f"{form}norm_gap"].mean())
    assert result.tokens_per_feature == 50 / 7
    assert json.loads(result.to_json())["norm_gap_median"] == result.norm_gap_median
    assert AFAResult.from_json(result.to_json()) == result
    assert result.to_dataframe("mine").loc["mine", "norm_gap_median"] == result.norm_gap_median
    lines = results_table({"mine": result}).splitlines()
    assert f"{result.norm_gap_median:.3f}" in next(line for line in lines if line.startswith("  norm gap, median"))
    assert lines.index(next(line for line in lines if "centered_norm gap" in line)) > lines.index(
        next(line for line in lines if line.startswith("centred,"))
    )
    for place in (CARD, SWEEPS):
        assert [metric.name for metric in metrics_shown_in(place)][-2:] == ["norm_gap_median", "norm_gap_mean"]


def test_a_new_metric_is_logged_while_an_sae_is_trained(added):
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16))
    log = AFAEvaluator()(sae, iter([torch.randn(5, 8)]), ActivationScaler())
    assert {f"afa/{metric.name}" for metric in added} <= set(log)


def test_results_of_before_a_metric_was_added_do_not_know_it(added):
    result = streams()[0].compute()
    data = {name: value for name, value in result.to_dict().items() if "gap" not in name}
    assert AFAResult.from_dict(data).norm_gap_median is None


def test_every_name_and_every_title_of_a_form_is_there_once():
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    titles = [(metric.form, metric.title) for metric in METRICS if metric.title]
    assert len(titles) == len(set(titles))
    for place in (CARD, SWEEPS):
        headings = [metric.heading for metric in metrics_shown_in(place)]
        assert "" not in headings
        assert len(headings) == len(set(headings))


def test_what_is_not_known_or_not_worth_showing_has_an_empty_cell():
    named = {metric.name: metric for metric in METRICS}
    assert named["n_nonfinite"].cell(0) == named["l0_mean"].cell(None) == "-"
    assert named["frac_over_activated"].cell(0.5) == "50.0%"
    assert named["n_tokens"].cell(1234) == "1,234"


def test_results_survive_a_trip_between_processes_with_every_metric(added):
    result = streams()[0].compute()
    there = pickle.loads(pickle.dumps(result))
    assert there == result
    assert np.array_equal(there.tokens["norm_gap"], result.tokens["norm_gap"])
