"""The files that a finished sweep leaves: tables, plots, and a Markdown report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.experiments.statistics import OK, Criterion, Summary, best_of_grids, best_rates, summarise, varying
from sae_lens_afa.experiments.sweep import Plot, Sweep
from sae_lens_afa.experiments.tables import best_table, measured_metrics, summary_table, write_runs
from sae_lens_afa.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
# A line at d_in is drawn where d_in is at most so many times the largest L0: elsewhere it would take half of the plot.
_NEAR = 4


def write_report(
    folder: Path, sweep: Sweep, rows: Sequence[Row], versions: Sequence[Mapping[str, str]], command: str
) -> list[Path]:
    """Write runs.csv, runs.parquet, the plots and report.md into `folder`."""
    files = write_runs(folder, rows)
    summaries = summarise(rows)
    plots = _l0_plots(folder, sweep, rows, summaries)
    if "steps" in varying(summaries):
        plots += [path for criterion in sweep.criteria() for path in _budget_plot(folder, sweep, criterion, summaries)]
    text = report_text(sweep, rows, versions, command, plots)
    return [*files, *plots, write_whole(folder / "report.md", lambda path: path.write_text(text, encoding="utf-8"))]


def _l0_plots(folder: Path, sweep: Sweep, rows: Sequence[Row], summaries: Sequence[Summary]) -> list[Path]:
    """Draw metrics against L0: the largest budget, each setting with the learning rate that is best for it."""
    largest = max((s.steps or 0) for s in summaries)
    shown = [s for s in best_rates(summaries, sweep.criteria()[0]) if (s.steps or 0) == largest]
    plots: list[Path] = []
    for plot in sweep.plots:
        if any(summary.mean(plot.metric) is not None for summary in shown):
            plots += _draw(folder / f"l0_{plot.metric}.png", plot, plot_table(plot, sweep, shown), rows, sweep)
    return plots


def _budget_plot(folder: Path, sweep: Sweep, criterion: Criterion, summaries: Sequence[Summary]) -> list[Path]:
    """Draw a criterion against the samples of the training, each arm at its best."""
    import pandas as pd

    from sae_lens_afa.plots import samples_plot

    if criterion.max_l0 is not None:
        return []
    points: list[dict[str, Any]] = []
    for s in best_of_grids(summaries, criterion):
        value = s.mean(criterion.metric)
        assert value is not None
        assert s.steps is not None
        points.append({
            "layer": s.stream, "architecture": s.label, "samples": s.steps * sweep.training.batch_size,
            "loss": 1 - value if criterion.higher_is_better else value, "label": f"{s.setting}, lr {s.lr:g}",
        })  # fmt: skip
    files = [folder / f"samples_{criterion.metric}{end}" for end in (".png", ".html")]
    label = f"1 - {criterion.title}" if criterion.higher_is_better else criterion.title
    if points:
        samples_plot(pd.DataFrame(points), loss_label=label, save=files)
    return files if points else []


def report_text(
    sweep: Sweep, rows: Sequence[Row], versions: Sequence[Mapping[str, str]], command: str, plots: Sequence[Path]
) -> str:
    """Return the report as Markdown."""
    summaries = summarise(rows)
    failed = [row for row in rows if row["status"] != OK]
    parts = [f"# {sweep.title}"]
    if command:
        parts.append(f"```\n{command}\n```")
    parts.append(
        f"{len(rows)} runs, {len(failed)} of them failed; `runs.csv` has a row for each. Metrics are means over seeds ±"
        " standard deviation (n - 1), measured on data that was not trained on, with the SAE in the form in which it"
        " is saved."
    )
    parts += ["\n".join(f"- {note}" for note in sweep.notes())]
    for criterion in sweep.criteria():
        parts += best_section(summaries, criterion)
    parts += [f"![{path.stem}]({path.name})" for path in plots if path.suffix == ".png"]
    parts += sweep.sections()
    parts += ["## The whole grid", summary_table(summaries, measured_metrics(rows))]
    if failed:
        parts += ["## Failures", "\n".join(f"- {_name(row)}: {row['status']}" for row in failed)]
    if damaged := [row for row in rows if row.get("n_nonfinite")]:
        lines = [f"- {_name(row)}: {row['n_nonfinite']:,} left out of its metrics" for row in damaged]
        parts += ["## Tokens with NaN or infinity", "\n".join(lines)]
    parts += ["## Settings", f"```json\n{settings_text(sweep.settings())}\n```"]
    parts += ["## Versions", "\n".join("- " + ", ".join(f"{k} {v}" for k, v in made.items()) for made in versions)]
    return "\n\n".join(part for part in parts if part) + "\n"


def best_section(summaries: Sequence[Summary], criterion: Criterion) -> list[str]:
    """Return the section on the best of each grid by a criterion."""
    best = best_of_grids(summaries, criterion)
    every = dict.fromkeys((summary.stream, summary.label) for summary in summaries)
    without = [pair for pair in every if pair not in {(summary.stream, summary.label) for summary in best}]
    parts = [f"## Best of each grid: {criterion}"]
    if not best:
        return [*parts, "No setting qualifies."]
    parts.append(
        f"{criterion.title}, and in brackets the value of the setting, its L0, and p of Welch's test over seeds against"
        " the best SAE of the data set. The settings were chosen by these same values, and p is not corrected for the"
        " number of tests."
    )
    parts.append(best_table(best, criterion))
    if without:
        parts.append("No setting qualifies of: " + ", ".join(f"{label} ({stream})" for stream, label in without) + ".")
    return parts


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as JSON with a line for each, and for each arm or world."""

    def text(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            return "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
        return json.dumps(value)

    return "{\n" + ",\n".join(f" {json.dumps(name)}: {text(value)}" for name, value in settings.items()) + "\n}"


def _draw(path: Path, plot: Plot, table: pd.DataFrame, rows: Sequence[Row], sweep: Sweep) -> list[Path]:
    """Draw the plot as an image and as a page, with lines at the true L0, and at d_in where codes come near it."""
    from sae_lens_afa.plots import l0_plot

    lines: dict[str, dict[str, float]] = {}
    levels: dict[str, float] = {}
    for stream in dict.fromkeys(table["layer"]):
        of_stream = [row for row in (*rows, *sweep.published()) if row["stream"] == stream]
        known = {title: _known(of_stream, name) for name, title in (("d_in", "d_in"), ("true_l0", "true L0"))}
        if (known["d_in"] or 0) > _NEAR * table.loc[table["layer"] == stream, "l0"].max():
            del known["d_in"]
        lines[stream] = {title: value for title, value in known.items() if value is not None}
        if plot.reference and (level := _known(of_stream, plot.reference)) is not None:
            levels[stream] = level
    files = [path, path.with_suffix(".html")]
    l0_plot(table, loss_label=plot.label, lines=lines, levels=levels, save=files)
    return files


def _known(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in rows if row.get(name) is not None), None)


def plot_table(plot: Plot, sweep: Sweep, summaries: Sequence[Summary]) -> pd.DataFrame:
    """Return what a plot draws: a point for each setting, the mean over seeds, and those that were published."""
    import pandas as pd

    def point(stream: str, label: str, l0: float | None, value: float | None, setting: str) -> dict[str, Any]:
        loss = value if value is None or not plot.complement else 1 - value
        return {"layer": stream, "architecture": label, "l0": l0, "loss": loss, "label": setting}

    points = [point(s.stream, s.label, s.mean("l0_mean"), s.mean(plot.metric), s.setting) for s in summaries]
    points += [
        point(row["stream"], row["label"], row["l0_mean"], row.get(plot.metric), row["setting"])
        for row in sweep.published()
    ]
    return pd.DataFrame([p for p in points if p["loss"] is not None and p["l0"]])


def _name(row: Row) -> str:
    setting = f"{row['hyperparameter']}={row['value']:g}"
    return f"{row['stream']}, {row['label']} {setting}, {row['steps']} steps, lr {row['lr']:g}, seed {row['seed']}"
