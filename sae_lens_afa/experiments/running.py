"""Run a sweep group by group: what is finished stays finished, and the report covers all of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_afa import torchrun
from sae_lens_afa.experiments.claims import claimed
from sae_lens_afa.experiments.report import write_report
from sae_lens_afa.experiments.results import ResultFolder
from sae_lens_afa.experiments.statistics import OK, Criterion, best_of_grids, summarise
from sae_lens_afa.experiments.sweep import RunGroup, Sweep
from sae_lens_afa.experiments.sweep_metrics import heading_of
from sae_lens_afa.experiments.tables import cell, summary_table

# Seconds between looks at what other processes have in work.
_PAUSE = 0.5


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep; `str()` is the table of the best of each grid.

    Attributes:
        folder: Where it is.
        rows: A row per run.
        criterion: By which the best are chosen in `str()`.
        metrics: Columns of that table.
        files: What was written beside the runs.

    Example:
        >>> from sae_lens_afa.experiments import SweepResult
        >>> from sae_lens_afa.experiments.statistics import Criterion
        >>> row = {"stream": "a", "label": "topk", "hyperparameter": "k", "value": 4, "status": "ok", "mse": 0.25}
        >>> print(SweepResult("runs/x", [row], Criterion("mse", "MSE", False), ["mse"], []))
        1 runs; of each grid the one of lowest mean MSE
        <BLANKLINE>
        | data | SAE | setting | seeds | MSE |
        | --- | --- | --- | --- | --- |
        | a | topk | k=4 | 1 | 0.250 |
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    criterion: Criterion
    metrics: Sequence[str]
    files: Sequence[Path]

    @property
    def n_failed(self) -> int:
        """Number of runs that failed."""
        return sum(row["status"] != OK for row in self.rows)

    def __str__(self) -> str:
        best = best_of_grids(summarise(self.rows), self.criterion)
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        table = summary_table(best, self.metrics)
        return f"{len(self.rows)} runs{failed}; of each grid the one of {self.criterion}\n\n{table}"


def run_sweep(
    sweep: Sweep, output: str | Path, *, command: str = "", progress: bool = True, max_groups: int | None = None
) -> SweepResult | None:
    """Run what is not finished of a sweep; write its tables, plots and report.

    A kill at any point loses at most the group in work; the same call goes on from there. So does one with more
    arms, seeds or data; its report has what it names. Several processes with one folder share the groups among them:
    those that torchrun starts, of which the first writes the report, or any others; each returns when all is done.

    Args:
        sweep: What to compare.
        output: Folder of settings.json, runs/, and when all is done runs.csv, runs.parquet, plots and report.md.
        command: The command line, for the report.
        progress: Show a progress bar and a line for each finished run.
        max_groups: Stop after so many groups.

    Returns:
        The result; None if `max_groups` stopped it before the end, or where another process of torchrun's reports.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: as `Sweep.check` and `ResultFolder`, before anything is trained.

    Example:
        >>> from sae_lens_afa.experiments import Arm, ground_truth_sweep, run_sweep
        >>> sweep = ground_truth_sweep("tiny", arms=[Arm("topk", "k", (2,))], seeds=[0], steps=2)
        >>> result = run_sweep(sweep, "runs/tiny", progress=False)
        >>> [row["status"] for row in result.rows]
        ['ok']
    """
    sweep.check()
    groups = sweep.groups()
    folder = ResultFolder(output, sweep.settings(), sweep.growing)
    keys = [key for group in groups for key in group.run_keys()]
    total, left = (sum(group.steps * len(group.members) for group in some) for some in (groups, _left(groups, folder)))
    shown = progress and torchrun.rank() == 0
    with (
        tqdm(total=total, initial=total - left, unit=" steps", disable=not shown) as bar,
        closing(_taken(groups, folder)) as taken,
    ):
        for group in islice(taken, max_groups):
            bar.set_description(group.name)
            rows = sweep.run_group(group, bar.update)
            folder.write(group.name, rows)
            if progress:
                for row in rows:
                    bar.write(_line(row, sweep))
    if torchrun.rank() != 0 or _left(groups, folder):
        return None
    finished = folder.finished()
    rows = [finished[key] for key in keys]
    files = write_report(folder.folder, sweep, rows, folder.versions(keys), command)
    return SweepResult(folder.folder, rows, sweep.criteria()[0], sweep.key_metrics, files)


def _left(groups: Sequence[RunGroup], folder: ResultFolder) -> list[RunGroup]:
    """Return what is not finished of groups; in work it may be."""
    finished = folder.finished()
    return [left for group in groups if (left := group.without(finished)).members]


def _taken(groups: Sequence[RunGroup], folder: ResultFolder) -> Generator[RunGroup]:
    """Yield what is left, group by group, each while no other process has it in work; wait for those of others."""
    while pending := _left(groups, folder):
        is_idle = True
        for group in pending:
            with claimed(folder.runs, group.name) as ours:
                # Another process may have finished it in the meantime.
                for left in _left([group], folder) if ours else ():
                    is_idle = False
                    yield left
        if is_idle:  # others have all of it in work, or one of them ends before it is done
            time.sleep(_PAUSE)


def _line(row: Mapping[str, Any], sweep: Sweep) -> str:
    setting = f"{row['hyperparameter']}={row['value']:g}"
    name = f"{row['stream']} seed {row['seed']}: {row['label']} {setting}, {row['steps']} steps, lr {row['lr']:g}"
    if row["status"] != OK:
        return f"{name}  {row['status']}"
    shown = dict.fromkeys(("l0_mean", *sweep.key_metrics[1:2], sweep.criteria()[0].metric))
    return f"{name}  " + "  ".join(f"{heading_of(metric)} {cell(row.get(metric))}" for metric in shown)
