"""Seeds put together: literal formulas beside ours."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc

from sae_lens_afa.experiments.statistics import (
    OK,
    Criterion,
    best_of_grids,
    best_rates,
    p_values,
    summarise,
    varying,
    welch,
)  # fmt: skip
from sae_lens_afa.experiments.tables import best_table, summary_table

HIGH = Criterion("mcc", "MCC", True)
LOW = Criterion("mse", "MSE", False)


def row(label="a", value=1.0, seed=0, status=OK, stream="s", steps=9, lr=0.1, **metrics):
    return {
        "stream": stream, "label": label, "hyperparameter": "k", "value": value, "seed": seed, "status": status,
        "steps": steps, "lr": lr, **metrics,
    }  # fmt: skip


def literal_welch(a, b):
    """Welch (1947): t, Satterthwaite's degrees of freedom, two-sided p by the incomplete beta function."""
    n, m = len(a), len(b)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / m
    va = math.fsum((x - mean_a) ** 2 for x in a) / (n - 1) / n
    vb = math.fsum((x - mean_b) ** 2 for x in b) / (m - 1) / m
    t = (mean_a - mean_b) / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (n - 1) + vb**2 / (m - 1))
    return t, df, betainc(df / 2, 0.5, df / (df + t * t))


samples = st.lists(st.integers(-1000, 1000), min_size=2, max_size=6, unique=True)


@given(samples, samples)
def test_welch_is_the_literal_formula(a, b):
    t, df, p = welch(a, b)
    # Whole numbers up to 1000: sums are exact, what is left is a few roundings and the beta function's.
    assert (t, df, p) == pytest.approx(literal_welch(a, b), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_welch_is_not_defined_without_spread(a, b):
    assert welch(a, b) == (None, None, None)


def test_a_summary_is_over_seeds_of_one_setting_and_counts_failures():
    rows = [row(seed=0, mcc=0.5), row(seed=1, mcc=0.7), row(seed=2, status="failed: x"), row(value=2.0, mcc=0.1)]
    first, second = summarise(rows)
    assert first.mean("mcc") == pytest.approx(0.6)
    assert first.spread("mcc") == pytest.approx(math.sqrt(0.02))
    assert (first.n_failed, second.n_failed) == (1, 0)
    assert second.spread("mcc") is None
    assert second.mean("unknown") is None


def test_the_best_of_a_grid_is_that_of_the_mean_and_never_one_that_failed():
    rows = [
        row(value=1.0, mcc=0.5, mse=0.2, l0_mean=9), row(value=2.0, mcc=0.6, mse=0.3, l0_mean=3),
        row(value=3.0, mcc=0.9, mse=0.1, l0_mean=1), row(value=3.0, seed=1, status="failed: x"),
        row("b", mcc=0.2, mse=0.9, l0_mean=50), row("c", status="failed: x"),
    ]  # fmt: skip
    summaries = summarise(rows)
    assert [(s.label, s.value) for s in best_of_grids(summaries, HIGH)] == [("a", 2.0), ("b", 1.0)]
    assert [(s.label, s.value) for s in best_of_grids(summaries, LOW)] == [("a", 1.0), ("b", 1.0)]
    sparse = Criterion("mse", "MSE", False, max_l0=5)
    assert [(s.label, s.value) for s in best_of_grids(summaries, sparse)] == [("a", 2.0)]
    assert str(sparse) == "lowest mean MSE with L0 <= 5"


def test_the_best_arm_of_each_stream_is_tested_against_the_others():
    rows = [
        row(label, seed=seed, stream=stream, mcc=mcc + 0.01 * seed)
        for stream in ("s", "t")
        for label, mcc in (("a", 0.1), ("b", 0.9), ("c", 0.5))
        for seed in range(3)
    ]
    p = p_values(best_of_grids(summarise(rows), HIGH), HIGH)
    assert set(p) == {("s", "a", 9), ("s", "c", 9), ("t", "a", 9), ("t", "c", 9)}
    assert p["s", "c", 9] == pytest.approx(welch([0.9, 0.91, 0.92], [0.5, 0.51, 0.52])[2])
    assert p["s", "a", 9] < p["s", "c", 9] < 1e-5


def test_each_budget_has_its_best_setting_and_learning_rate():
    rows = [
        row("a", value, seed, steps=steps, lr=lr, mcc=mcc + 0.01 * seed, l0_mean=2.0)
        for steps, value, lr, mcc in ((9, 1, 0.1, 0.3), (9, 1, 0.2, 0.4), (9, 2, 0.2, 0.1), (90, 1, 0.1, 0.7))
        for seed in range(2)
    ]
    summaries = summarise(rows)
    assert varying(summaries) == ("steps", "lr")
    assert [(s.steps, s.value, s.lr) for s in best_of_grids(summaries, HIGH)] == [(9, 1, 0.2), (90, 1, 0.1)]
    assert [(s.steps, s.value, s.lr) for s in best_rates(summaries, HIGH)] == [(9, 1, 0.2), (9, 2, 0.2), (90, 1, 0.1)]
    assert best_table(best_of_grids(summaries, HIGH), HIGH).splitlines() == [
        "| SAE | steps | s |",
        "| --- | --- | --- |",
        "| a | 9 | 0.405 ± 7.07e-03 (1; lr 0.2; L0 2.000) |",
        "| a | 90 | 0.705 ± 7.07e-03 (1; lr 0.1; L0 2.000) |",
    ]
    header, _, first, *_ = summary_table(summaries, ["mcc"]).splitlines()
    assert header == "| data | SAE | setting | steps | lr | seeds | MCC |"
    assert first == "| s | a | k=1 | 9 | 0.1 | 2 | 0.305 ± 7.07e-03 |"


def test_at_a_glance_there_is_a_column_for_each_data_set():
    rows = [row("a", 3, stream="s", mcc=0.5, l0_mean=2.9), row("b", 0.1, stream="s", mcc=0.25, l0_mean=12.0)]
    rows.append(row("a", 6, stream="t", mcc=0.75, l0_mean=6.0))
    assert best_table(summarise(rows), HIGH).splitlines() == [
        "| SAE | s | t |",
        "| --- | --- | --- |",
        "| a | 0.500 (3; L0 2.900) | 0.750 (6; L0 6.000) |",
        "| b | 0.250 (0.1; L0 12.0) | - |",
    ]


def test_over_seeds_there_are_spreads_and_p_against_the_best():
    rows = [row("a", seed=seed, mcc=0.5 + seed, l0_mean=2.0) for seed in (0, 1)]
    rows += [row("b", seed=seed, mcc=0.5 - seed, l0_mean=2.0) for seed in (0, 1)]
    lines = best_table(summarise(rows), HIGH).splitlines()
    assert lines[2:] == [
        "| a | 1.000 ± 0.707 (1; L0 2.000) |",
        f"| b | 0.000 ± 0.707 (1; L0 2.000; p {welch([0.5, 1.5], [0.5, -0.5])[2]:.3f}) |",
    ]


def test_a_setting_without_a_choice_of_rates_is_drawn_also_where_a_seed_failed():
    rows = [row("a", 1, 0, mcc=0.3), row("a", 1, 1, status="failed: x"), row("b", 1, 0), row("c", 1, 0, mcc=0.4)]
    assert best_rates(summarise(rows), HIGH) == summarise(rows)
