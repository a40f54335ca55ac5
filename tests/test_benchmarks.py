"""The benchmarks run, at a size at which their measurements mean nothing; committed results are of a piece."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import allocation, evals, gram
from sae_lens_afa.experiments.report import best_section
from sae_lens_afa.experiments.statistics import Criterion, summarise
from sae_lens_afa.experiments.sweep_metrics import sweep_metrics
from sae_lens_afa.experiments.tables import IDENTITY, measured_metrics, summary_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
SWEEPS = sorted(path.parent.name for path in RESULTS.glob("*/runs.csv"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Call a benchmark with these arguments, in this process, and return what it prints."""
    threads = torch.get_num_threads()

    def call(main: Callable[[], object], *args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark", *args])
        main()
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def quartiles_are_in_order(found: dict) -> bool:
    return 0 < found["q25"] <= found["median"] <= found["q75"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_the_table_has_every_goal(tmp_path, run):
    file = tmp_path / "found.json"
    printed = run(
        lambda: runpy.run_module("benchmarks", run_name="__main__"),
        *("--growth-rounds", "0", "--json", str(file)),
        *("--rounds", "2", "--batch", "70", "--d-in", "32", "--d-sae", "640"),
    )
    found = json.loads(file.read_text())
    assert {"cpu", "threads", "torch", "numba", "sae-lens", "THP_MEM_ALLOC_ENABLE"} <= set(found["setting"])
    assert len(found["goals"]) == 16
    for row in found["goals"]:
        (line,) = (line for line in printed.splitlines() if line.startswith(row["what"]))
        assert row["verdict"] in line
        if "on GPU" in row["what"]:
            assert row["verdict"] == "not measured"
            continue
        assert quartiles_are_in_order(row["measured"])
        assert f"{row['measured']['median']:.3f}" in line
        median, sign = row["measured"]["median"], -1 if row["at_least"] else 1
        assert (row["verdict"] == "MISSED") == (sign * median > sign * row["goal"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_allocation_measures_time_and_memory():
    rows = allocation.measure((512, 256, 4), 2)
    assert [row["variant"] for row in rows] == [
        "batchtopk", "mutual_choice", "feature_choice, uniform", "feature_choice, zipf",
    ]  # fmt: skip
    assert rows[0]["time_ratio_to_batchtopk"]["median"] == 1
    assert all(quartiles_are_in_order(row["time_ratio_to_batchtopk"]) for row in rows)
    assert all(row["peak_memory_in_batches"] >= 0 for row in rows)


@pytest.mark.slow
def test_the_cost_of_metrics_is_measured(tmp_path, run, monkeypatch):
    file = tmp_path / "found.json"
    monkeypatch.setattr(evals, "D_SAE", 512)
    printed = run(evals.main, "--device", "cpu", "--tokens", "32", "--repeats", "3", "--json", str(file))
    for row in json.loads(file.read_text())["rows"]:
        assert row["sae"] in printed
        assert row["ratio_q05"] <= row["ratio"] <= row["ratio_q95"]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_committed_report_is_that_of_its_runs(name):
    text, table = (RESULTS / name / "report.md").read_text(), pd.read_csv(RESULTS / name / "runs.csv")
    assert set(table.columns) <= {*IDENTITY, *(metric.name for metric in sweep_metrics())}
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    failed = sum(row["status"] != "ok" for row in rows)
    assert f"{len(rows)} runs, {failed} of them failed" in text
    summaries = summarise(rows)
    assert summary_table(summaries, measured_metrics(rows)) in text
    sections = [part for part in text.split("\n## ") if part.startswith("Best of each grid")]
    assert sections
    for section in sections:
        criterion = criterion_of(section.partition("\n")[0])
        assert "\n\n".join(best_section(summaries, criterion)) in text
    # The reader's part; the grid that follows has a line a setting, and runs.csv one a run.
    assert len(text.splitlines()) < 330


def criterion_of(heading: str) -> Criterion:
    """The criterion that a section of a report names."""
    kind, _, rest = heading.removeprefix("Best of each grid: ").partition(" mean ")
    title, _, limit = rest.partition(" with L0 <= ")
    names = {
        "MCC": "mcc", "F1": "f1", "MSE": "mse", "cross-entropy with the SAE": "ce_loss_with_sae",
        "explained variance": "explained_variance", "explained variance (raw)": "explained_variance_raw",
    }  # fmt: skip
    return Criterion(names[title], title, kind == "highest", float(limit) if limit else None)


def test_the_gram_matrix_gives_the_product(tmp_path, run):
    file = tmp_path / "gram.json"
    printed = run(gram.main, "--rounds", "2", "--d-in", "16", "--d-sae", "64", "--l0", "4", "8", "--json", str(file))
    assert printed.count("of the product's time") == 2
    found = json.loads(file.read_text())
    assert found["gram_bytes"] == 64 * 64 * 4
    assert all(quartiles_are_in_order(row["gram / product"]) for row in found["rows"])
