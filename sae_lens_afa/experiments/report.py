"""The files that a finished sweep leaves: tables, plots, and a Markdown report that lists every run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.experiments.statistics import (
    OK,
    Criterion,
    Summary,
    Welch,
    best_of_grids,
    summarise,
    welch_tests,
)
from sae_lens_afa.experiments.tables import (
    cell,
    glance_table,
    markdown,
    run_list,
    spread_cell,
    summary_table,
    write_runs,
)
from sae_lens_afa.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

    from sae_lens_afa.experiments.sweep import Sweep

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Plot:
    """A figure against L0.

    Attributes:
        figure: Its column.
        label: Of the axis.
        complement: Draw 1 - figure: lower is better, as on every plot.
        reference: A figure that is the same for all runs of a panel, drawn as a level line.
    """

    figure: str
    label: str
    complement: bool = False
    reference: str = ""


def write_report(
    folder: Path, sweep: Sweep, rows: Sequence[Row], versions: Sequence[Mapping[str, str]], command: str
) -> list[Path]:
    """Write runs.csv, runs.parquet, the plots and report.md into `folder`."""
    files = write_runs(folder, rows)
    summaries = summarise(rows)
    plots: list[Path] = []
    for plot in sweep.plots:
        if any(summary.mean(plot.figure) is not None for summary in summaries):
            plots += _draw(folder / f"l0_{plot.figure}.png", plot, plot_table(plot, sweep, summaries), rows, sweep)
    text = report_text(sweep, rows, versions, command, plots)
    return [*files, *plots, write_whole(folder / "report.md", lambda path: path.write_text(text, encoding="utf-8"))]


def report_text(
    sweep: Sweep, rows: Sequence[Row], versions: Sequence[Mapping[str, str]], command: str, plots: Sequence[Path]
) -> str:
    """The report as Markdown."""
    summaries, figures = summarise(rows), list(sweep.key_figures)
    failed = [row for row in rows if row["status"] != OK]
    parts = [f"# {sweep.title}"]
    if command:
        parts.append(f"```\n{command}\n```")
    parts.append(
        f"{len(rows)} runs, {len(failed)} of them failed; all are listed below and in `runs.csv`."
        " Figures are means over seeds ± standard deviation (n - 1), measured on data that was not trained on,"
        " with the SAE in the form in which it is saved."
    )
    parts += ["\n".join(f"- {note}" for note in sweep.notes())]
    for criterion in sweep.criteria:
        parts += _best_section(summaries, criterion, figures)
    parts += [f"![{path.stem}]({path.name})" for path in plots if path.suffix == ".png"]
    parts += sweep.sections()
    parts += ["## The whole grid", summary_table(summaries, figures)]
    parts += ["## Every run", run_list(rows, figures)]
    if failed:
        lines = [f"- {_name(row)}: {row['status']}" for row in failed]
        parts += ["## Failures", "\n".join(lines)]
    if damaged := [row for row in rows if row.get("n_nonfinite")]:
        lines = [f"- {_name(row)}: {row['n_nonfinite']:,} left out of its figures" for row in damaged]
        parts += ["## Tokens with NaN or infinity", "\n".join(lines)]
    parts += ["## Settings", f"```json\n{json.dumps(sweep.settings(), indent=1)}\n```"]
    parts += ["## Versions", "\n".join("- " + ", ".join(f"{k} {v}" for k, v in made.items()) for made in versions)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _best_section(summaries: Sequence[Summary], criterion: Criterion, figures: Sequence[str]) -> list[str]:
    best = best_of_grids(summaries, criterion)
    shown = list(figures) if criterion.figure in figures else [*figures, criterion.figure]
    every = dict.fromkeys((summary.stream, summary.label) for summary in summaries)
    without = [pair for pair in every if pair not in {(summary.stream, summary.label) for summary in best}]
    parts = [f"## Best of each grid: {criterion}"]
    if len({summary.stream for summary in best}) > 1:
        parts.append(f"{criterion.title}, and in brackets the value of the setting and its L0:")
        parts.append(glance_table(best, criterion.figure))
    parts.append(summary_table(best, shown) if best else "No setting qualifies.")
    if without:
        parts.append("No setting qualifies of: " + ", ".join(f"{label} ({stream})" for stream, label in without) + ".")
    if tests := welch_tests(best, criterion):
        parts.append(
            f"Welch's test over seeds of {criterion.title}, the best SAE of each data set against the others. The"
            " settings compared were chosen by these same values, and p is not corrected for the number of tests."
        )
        parts.append(_welch_table(tests, criterion))
    return parts


def _welch_table(tests: Sequence[Welch], criterion: Criterion) -> str:
    def named(summary: Summary) -> str:
        figures = spread_cell(summary.mean(criterion.figure), summary.spread(criterion.figure))
        return f"{summary.label} {summary.setting}: {figures}"

    header = ["data", "best", "against", "difference", "t", "df", "p"]
    return markdown(
        header,
        [
            [test.stream, named(test.first), named(test.second)]
            + [cell(value) for value in (test.difference, test.t, test.df, test.p)]
            for test in tests
        ],
    )


def _draw(path: Path, plot: Plot, table: pd.DataFrame, rows: Sequence[Row], sweep: Sweep) -> list[Path]:
    """The plot as an image and as a page, with lines at d_in and at the true L0."""
    from sae_lens_afa.plots import l0_plot

    lines: dict[str, dict[str, float]] = {}
    levels: dict[str, float] = {}
    for stream in dict.fromkeys(table["layer"]):
        of_stream = [row for row in (*rows, *sweep.published()) if row["stream"] == stream]
        known = {title: _known(of_stream, name) for name, title in (("d_in", "d_in"), ("true_l0", "true L0"))}
        lines[stream] = {title: value for title, value in known.items() if value is not None}
        if plot.reference and (level := _known(of_stream, plot.reference)) is not None:
            levels[stream] = level
    files = [path, path.with_suffix(".html")]
    l0_plot(table, loss_label=plot.label, lines=lines, levels=levels, save=files)
    return files


def _known(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in rows if row.get(name) is not None), None)


def plot_table(plot: Plot, sweep: Sweep, summaries: Sequence[Summary]) -> pd.DataFrame:
    """What a plot draws: a point for each setting, the mean over seeds, and those that were published."""
    import pandas as pd

    def point(stream: str, label: str, l0: float | None, value: float | None, setting: str) -> dict[str, Any]:
        loss = value if value is None or not plot.complement else 1 - value
        return {"layer": stream, "architecture": label, "l0": l0, "loss": loss, "label": setting}

    points = [point(s.stream, s.label, s.mean("l0"), s.mean(plot.figure), s.setting) for s in summaries]
    points += [
        point(row["stream"], row["label"], row["l0"], row.get(plot.figure), row["setting"]) for row in sweep.published()
    ]
    return pd.DataFrame([p for p in points if p["loss"] is not None and p["l0"]])


def _name(row: Row) -> str:
    return f"{row['stream']}, {row['label']} {row['hyperparameter']}={row['value']:g}, seed {row['seed']}"
