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
    device: str = "cpu"

    plots: ClassVar[Sequence[Plot]]
    key_metrics: ClassVar[Sequence[str]]
    growing: ClassVar[Sequence[str]] = ("arms", "seeds")

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_device(self.device)

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
        return [run for arm in self.arms for run in arm.runs()]

    def with_steps(self, steps: int) -> Self:
        """Return the sweep with more or fewer steps: all that is counted in steps changes in proportion."""
        arms = tuple(arm.with_steps(steps, self.training.steps) for arm in self.arms)
        return replace(self, arms=arms, training=self.training.with_steps(steps))

    def compared(self) -> dict[str, Any]:
        """Return arms, training and seeds, as part of `settings`."""
        return {
            "arms": [arm.to_dict() for arm in self.arms],
            "training": self.training.to_dict(),
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
