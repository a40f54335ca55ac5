"""Sweeps: architectures over grids of settings and several seeds, trained and judged alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from sae_lens_afa.experiments.arms import Arm, Run
from sae_lens_afa.experiments.rows import check_seeds, identity, key_of
from sae_lens_afa.experiments.side_by_side import Training
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.loading.models import check_device

Advance = Callable[[int], object]


@dataclass(frozen=True)
class RunGroup:
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
        """Return `rows.key_of` of each member's row."""
        return [key_of(identity(stream, self.seed, run)) for stream, run in self.members]

    def without(self, finished: Container[str]) -> RunGroup:
        """Return what is left to do of it."""
        pairs = zip(self.run_keys(), self.members, strict=True)
        return replace(self, members=[member for key, member in pairs if key not in finished])

    @property
    def steps(self) -> int:
        """Training steps of each member: they share their batches."""
        (steps,) = {run.steps for _, run in self.members}
        assert steps is not None
        return steps


def by_steps(runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    """Return runs of a sweep that are trained for as many steps together, in their order."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        assert run.steps is not None
        found.setdefault(run.steps, []).append(run)
    return list(found.items())


@dataclass(frozen=True)
class Plot:
    """A plot of a metric against L0.

    Attributes:
        metric: Its column.
        label: Of the axis.
        complement: Draw 1 - metric: lower is better, as on every plot.
        reference: A metric that is the same for all runs of a panel, drawn as a level line.
    """

    metric: str
    label: str
    complement: bool = False
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep(ABC):
    """A comparison: what is trained on what, and how it is judged. `run_sweep` does the rest.

    A change of one is made by `dataclasses.replace`.

    Attributes:
        title: Of the report.
        arms, training, seeds: What is compared, how it is trained, and how often.
        budgets: Training steps; each run is made with each. Those of `training` if there are none; otherwise all that
            it counts in steps changes in proportion.
        rates: Learning rates; each run is made with each. That of `training` if there are none.
        device: Where the SAEs are trained.
        plots: What is drawn against L0.
        key_metrics: Columns of the table in the terminal; report.md and runs.csv have all.
        growing: Keys of `settings` that may be others when a folder is used again: what is finished is kept.

    Example:
        >>> from dataclasses import replace
        >>> from sae_lens_afa.experiments import Arm, ground_truth_sweep
        >>> sweep = replace(ground_truth_sweep("tiny"), arms=(Arm("topk", "k", (2, 3)),), seeds=(0,))
        >>> [run.name for run in sweep.with_steps(100).runs()]
        ['topk k=2', 'topk k=3']
    """

    title: str
    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    budgets: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    device: str = "cpu"

    plots: ClassVar[Sequence[Plot]]
    key_metrics: ClassVar[Sequence[str]]
    growing: ClassVar[Sequence[str]] = ("arms", "seeds", "budgets", "rates")

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_device(self.device)
        for steps in self.budgets:
            self.training.with_steps(steps)
        for lr in (*self.rates, *(lr for arm in self.arms for lr in arm.rates)):
            replace(self.training, lr=lr)

    @abstractmethod
    def criteria(self) -> Sequence[Criterion]:
        """Return by what the best of each grid is chosen; the first one is shown in the terminal."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return all that the results depend on, as JSON values."""

    @abstractmethod
    def groups(self) -> list[RunGroup]:
        """Return all groups, in the order in which they are run."""

    @abstractmethod
    def run_group(self, group: RunGroup, advance: Advance) -> list[dict[str, Any]]:
        """Train and measure the runs of a group: a row for each. `advance` is told of SAE-steps that are done."""

    def check(self) -> None:
        """Read the files that the sweep names and refuse what will not do; called before anything is written.

        Raises:
            ValueError, FileNotFoundError: the message says what will not do.
        """
        self.settings()

    def runs(self) -> list[Run]:
        """Return the runs of all arms, for one seed and one kind of data."""
        return [
            run
            for steps in self.budgets or (self.training.steps,)
            for arm in self.arms
            for run in arm.runs(steps, self.rates or (self.training.lr,))
        ]

    def training_of(self, group: RunGroup) -> Training:
        """Return how the members of a group are trained, but for their learning rates."""
        return self.training.with_steps(group.steps)

    def with_steps(self, *steps: int) -> Self:
        """Return the sweep with other training steps: all that is counted in steps changes in proportion."""
        return replace(self, budgets=steps)

    def compared(self) -> dict[str, Any]:
        """Return arms, training and seeds, as part of `settings`."""
        return {
            "arms": [arm.to_dict() for arm in self.arms],
            "training": self.training.to_dict(),
            "budgets": list(self.budgets),
            "rates": list(self.rates),
            "seeds": list(self.seeds),
        }

    def notes(self) -> list[str]:
        """Return what a reader of the report has to know."""
        return []

    def published(self) -> list[Mapping[str, Any]]:
        """Return published runs to be drawn beside ours: stream, label, setting, l0_mean and the plots' metrics."""
        return []

    def sections(self) -> list[str]:
        """Return more of the report."""
        return []
