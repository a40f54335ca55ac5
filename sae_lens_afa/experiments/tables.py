"""A sweep's results as tidy tables: a row per run for files, a row per setting for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.experiments.statistics import Criterion, Summary, p_values, varying
from sae_lens_afa.experiments.sweep_metrics import heading_of, sweep_metrics
from sae_lens_afa.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = (
    "stream",
    "label",
    "architecture",
    "hyperparameter",
    "value",
    "steps",
    "lr",
    "seed",
    "status",
    "d_in",
    "d_sae",
)


def measured_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that some run has, in the order of tables."""
    return [metric.name for metric in sweep_metrics() if any(row.get(metric.name) is not None for row in rows)]


def runs_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a row per run: its identity, whether it succeeded, and every metric that a run of the sweep has."""
    import pandas as pd

    columns = (*IDENTITY, *measured_metrics(rows))
    return pd.DataFrame([{name: row.get(name) for name in columns} for row in rows])


def write_runs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write runs.csv and runs.parquet."""
    table = runs_table(rows)
    return [
        write_whole(folder / "runs.csv", lambda path: table.to_csv(path, index=False)),
        write_whole(folder / "runs.parquet", lambda path: table.to_parquet(path, index=False)),
    ]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def summary_table(summaries: Sequence[Summary], metrics: Sequence[str]) -> str:
    """Return a row per setting: mean and standard deviation over seeds."""
    also = varying(summaries)
    header = ["data", "SAE", "setting", *also, "seeds", *(heading_of(name) for name in metrics)]
    lines = [
        [s.stream, s.label, s.setting, *(f"{getattr(s, name):g}" for name in also), _seeds(s)]
        + [spread_cell(s, name) for name in metrics]
        for s in summaries
    ]
    return markdown(header, lines)


def best_table(best: Sequence[Summary], criterion: Criterion) -> str:
    """Return a row per arm and budget, a column per data set: the metric, and in brackets what it was reached with.

    That is the setting's value, the learning rate where several were tried, L0, and p of `p_values`.
    """
    streams = list(dict.fromkeys(s.stream for s in best))
    p = p_values(best, criterion)
    also = varying(best)

    def shown(s: Summary) -> str:
        rate = f"; lr {s.lr:g}" if "lr" in also else ""
        key = (s.stream, s.label, s.steps)
        test = f"; p {cell(p[key])}" if key in p else ""
        return f"{spread_cell(s, criterion.metric)} ({s.value:.3g}{rate}; L0 {cell(s.mean('l0_mean'))}{test})"

    cells = {(s.label, s.steps, s.stream): shown(s) for s in best}
    lines = [
        [label, *([f"{steps:,}"] if "steps" in also else []),
         *(cells.get((label, steps, stream), "-") for stream in streams)]
        for label, steps in dict.fromkeys((s.label, s.steps) for s in best)
    ]  # fmt: skip
    return markdown(["SAE", *(["steps"] if "steps" in also else []), *streams], lines)


def cell(value: float | None) -> str:
    """Return a number with three or four digits, or a dash."""
    if value is None:
        return "-"
    if value != 0 and abs(value) < 1e-2:
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def spread_cell(summary: Summary, metric: str) -> str:
    """Return the mean of a metric and its standard deviation."""
    mean, spread = summary.mean(metric), summary.spread(metric)
    return cell(mean) if spread is None else f"{cell(mean)} ± {cell(spread)}"


def _seeds(summary: Summary) -> str:
    return str(len(summary.rows)) + (f" ({summary.n_failed} failed)" if summary.n_failed else "")
