"""Run a sweep group by group: what is finished stays finished, and the report covers all of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_afa.experiments.arms import Arm, Run
from sae_lens_afa.experiments.report import Plot, write_report
from sae_lens_afa.experiments.results import ResultFolder
from sae_lens_afa.experiments.rows import identity, key_of
from sae_lens_afa.experiments.statistics import OK, Criterion, best_of_grids, summarise
from sae_lens_afa.experiments.tables import cell, summary_table
from sae_lens_afa.experiments.training import Training

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Group:
    """Runs that share a process and its data, and are finished together.

    Attributes:
        name: Of its file.
        seed: Of the SAEs and of the data's order.
        members: The SAEs, each with the name of its data. How one comes out does not depend on the others.
    """

    name: str
    seed: int
    members: Sequence[tuple[str, Run]]

    def run_keys(self) -> list[str]:
        """`rows.key_of` of each member's row."""
        return [key_of(identity(stream, self.seed, run)) for stream, run in self.members]

    def without(self, finished: Container[str]) -> Group:
        """What is left of it to do."""
        pairs = zip(self.run_keys(), self.members, strict=True)
        return replace(self, members=[member for key, member in pairs if key not in finished])


class Sweep(ABC):
    """What a sweep compares and how; `run_sweep` does the rest.

    Attributes:
        arms, training, seeds: What is compared, how it is trained, and how often.
        title: Of the report.
        criteria: By which the best of each grid is chosen; the first one is shown in the terminal.
        plots: What is drawn against L0.
        key_figures: Columns of the tables in the report; runs.csv has all.
        growing: Keys of `settings` that may be others when a folder is used again: what is finished is kept.
    """

    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    title: str
    criteria: Sequence[Criterion]
    plots: Sequence[Plot]
    key_figures: Sequence[str]
    growing: Sequence[str] = ("arms", "seeds")

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the results depend on, as JSON values."""

    @abstractmethod
    def groups(self) -> list[Group]:
        """All groups, in the order in which they are run."""

    @abstractmethod
    def run_group(self, group: Group, advance: Advance) -> list[dict[str, Any]]:
        """Train and measure the runs of a group: a row for each. `advance` is told of SAE-steps that are done."""

    def compared(self) -> dict[str, Any]:
        """Arms, training and seeds, as part of `settings`."""
        return {
            "arms": [arm.to_dict() for arm in self.arms],
            "training": self.training.to_dict(),
            "seeds": list(self.seeds),
        }

    def steps(self) -> int:
        """Training steps of a run."""
        return self.training.steps

    def notes(self) -> list[str]:
        """What a reader of the report has to know."""
        return []

    def published(self) -> list[Mapping[str, Any]]:
        """Published runs to be drawn beside ours: stream, label, setting, l0 and the plots' figures."""
        return []

    def sections(self) -> list[str]:
        """More of the report."""
        return []


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        folder: Where it is.
        rows: A row per run.
        criterion: By which the best are chosen in `str()`.
        figures: Columns of that table.
        files: What was written beside the runs.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    criterion: Criterion
    figures: Sequence[str]
    files: Sequence[Path]

    @property
    def n_failed(self) -> int:
        """Runs that failed."""
        return sum(row["status"] != OK for row in self.rows)

    def __str__(self) -> str:
        best = best_of_grids(summarise(self.rows), self.criterion)
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        table = summary_table(best, self.figures)
        return f"{len(self.rows)} runs{failed}; of each grid the one of {self.criterion}\n\n{table}"


def run_sweep(
    sweep: Sweep, output: str | Path, *, command: str = "", progress: bool = True, max_groups: int | None = None
) -> SweepResult | None:
    """Run what is not finished of a sweep, and write its tables, plots and report.

    A kill at any point loses at most the group in work; the same call goes on from there. So does one with more
    arms, seeds or data; its report has what it names.

    Args:
        sweep: What to compare.
        output: Folder of settings.json, runs/, and when all is done runs.csv, runs.parquet, plots and report.md.
        command: The command line, for the report.
        progress: Show a progress bar and a line for each finished run.
        max_groups: Stop after so many groups.

    Returns:
        The result; None if `max_groups` stopped it before the end.

    Raises:
        ValueError, FileExistsError: as `ResultFolder`, before anything is trained.
    """
    groups = sweep.groups()
    folder = ResultFolder(output, sweep.settings(), sweep.growing)
    finished = folder.finished()
    pending = [left for group in groups if (left := group.without(finished)).members]
    keys = [key for group in groups for key in group.run_keys()]
    done = len(keys) - sum(len(group.members) for group in pending)
    with tqdm(
        total=len(keys) * sweep.steps(), initial=done * sweep.steps(), unit=" steps", disable=not progress
    ) as bar:
        for group in pending[:max_groups]:
            bar.set_description(group.name)
            rows = sweep.run_group(group, bar.update)
            folder.write(group.name, rows)
            if progress:
                for row in rows:
                    bar.write(_line(row, sweep))
    if max_groups is not None and len(pending) > max_groups:
        return None
    finished = folder.finished()
    rows = [finished[key] for key in keys]
    files = write_report(folder.folder, sweep, rows, folder.versions(keys), command)
    return SweepResult(folder.folder, rows, sweep.criteria[0], sweep.key_figures[:7], files)


def _line(row: Mapping[str, Any], sweep: Sweep) -> str:
    name = f"{row['stream']} seed {row['seed']}: {row['label']} {row['hyperparameter']}={row['value']:g}"
    if row["status"] != OK:
        return f"{name}  {row['status']}"
    shown = dict.fromkeys(("l0", "explained_variance", sweep.criteria[0].figure))
    return f"{name}  " + "  ".join(f"{figure} {cell(row.get(figure))}" for figure in shown)
