"""A sweep's results as tidy tables: a row per run for files, a row per setting for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.experiments.statistics import Summary
from sae_lens_afa.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = ("stream", "label", "architecture", "hyperparameter", "value", "seed", "status", "d_in", "d_sae")
# Figures with their headings, in the order of the tables. A sweep has those that apply to it.
FIGURES = {
    "l0": "L0",
    "true_l0": "true L0",
    "explained_variance": "expl. var.",
    "mse": "MSE",
    "mcc": "MCC",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "uniqueness": "uniqueness",
    "dead_latents": "dead",
    "shrinkage": "shrinkage",
    "norm_ratio": "norm ratio",
    "activation_ratio": "act. ratio",
    "reconstruction_ratio": "recons. ratio",
    "epsilon_lbo": "eps-LBO",
    "frac_over_activated": "over-act.",
    "l0_q05": "L0 5 %",
    "l0_q95": "L0 95 %",
    "ce": "CE",
    "ce_with_sae": "CE with SAE",
    "ce_ablated": "CE ablated",
    "ce_score": "CE score",
    "mdl_bits": "MDL bits",
    "n_nonfinite": "NaN",  # of runs that have any
}


def runs_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per run: what it is, whether it succeeded, and every figure that a run of the sweep has."""
    import pandas as pd

    figures = [name for name in FIGURES if any(name in row for row in rows)]
    return pd.DataFrame([{name: row.get(name) for name in (*IDENTITY, *figures)} for row in rows])


def write_runs(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write runs.csv and runs.parquet."""
    table = runs_table(rows)
    return [
        write_whole(folder / "runs.csv", lambda path: table.to_csv(path, index=False)),
        write_whole(folder / "runs.parquet", lambda path: table.to_parquet(path, index=False)),
    ]


def shown_figures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that some run has."""
    return [name for name in FIGURES if any(row.get(name) is not None for row in rows)]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def summary_table(summaries: Sequence[Summary], figures: Sequence[str]) -> str:
    """A row per setting: mean and standard deviation over seeds."""
    header = ["data", "SAE", "setting", "seeds", *(FIGURES[name] for name in figures)]
    lines = [
        [s.stream, s.label, s.setting, _seeds(s), *(spread_cell(s.mean(name), s.spread(name)) for name in figures)]
        for s in summaries
    ]
    return markdown(header, lines)


def glance_table(best: Sequence[Summary], figure: str) -> str:
    """A row per arm, a column per data set: the figure, and in brackets the value of the setting and its L0."""
    streams = list(dict.fromkeys(s.stream for s in best))
    cells = {(s.label, s.stream): f"{cell(s.mean(figure))} ({s.value:.3g}; L0 {cell(s.mean('l0'))})" for s in best}
    lines = [
        [label, *(cells.get((label, stream), "-") for stream in streams)]
        for label in dict.fromkeys(s.label for s in best)
    ]
    return markdown(["SAE", *streams], lines)


def run_list(rows: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> str:
    """A row per run."""
    header = ["data", "SAE", "setting", "seed", "status", *(FIGURES[name] for name in figures)]
    return markdown(
        header,
        [
            [row["stream"], row["label"], f"{row['hyperparameter']}={row['value']:g}", str(row["seed"]), row["status"]]
            + [cell(row.get(name)) for name in figures]
            for row in rows
        ],
    )


def cell(value: float | None) -> str:
    """A number with three or four digits, or a dash."""
    if value is None:
        return "-"
    if value != 0 and abs(value) < 1e-2:
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def spread_cell(mean: float | None, spread: float | None) -> str:
    """A mean and its standard deviation."""
    return cell(mean) if spread is None else f"{cell(mean)} ± {cell(spread)}"


def _seeds(summary: Summary) -> str:
    return str(len(summary.rows)) + (f" ({summary.n_failed} failed)" if summary.n_failed else "")
