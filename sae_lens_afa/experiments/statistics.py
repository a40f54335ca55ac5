"""Runs of several seeds put together: means and spreads, the best of each grid, Welch's test between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]
OK = "ok"


@dataclass(frozen=True)
class Criterion:
    """The metric by which the best of a grid is chosen.

    Attributes:
        metric: Its column.
        title: Its name in sentences.
        higher_is_better: Or lower.
        max_l0: Choose only among settings whose mean L0 is at most this.
    """

    metric: str
    title: str
    higher_is_better: bool
    max_l0: float | None = None

    def __str__(self) -> str:
        which = f"{'highest' if self.higher_is_better else 'lowest'} mean {self.title}"
        return which if self.max_l0 is None else f"{which} with L0 <= {self.max_l0:g}"


@dataclass(frozen=True)
class Summary:
    """The runs of one setting that differ in their seed only.

    Attributes:
        stream: Data that they were trained on.
        label, hyperparameter, value: The setting.
        rows: Runs that succeeded.
        n_failed: Runs that did not.
        steps, lr: Training steps and learning rate.
    """

    stream: str
    label: str
    hyperparameter: str
    value: float
    rows: tuple[Row, ...]
    n_failed: int
    steps: int | None = None
    lr: float | None = None

    @property
    def setting(self) -> str:
        """The hyperparameter and its value."""
        return f"{self.hyperparameter}={self.value:g}"

    def values(self, metric: str) -> list[float]:
        """Return the metric for each seed for which it is defined."""
        return [row[metric] for row in self.rows if row.get(metric) is not None]

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds."""
        values = self.values(metric)
        return fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation over seeds (n - 1); None for fewer than two."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Return a summary for each setting, stream by stream, in the order of the runs."""
    rows = list(rows)
    streams = list(dict.fromkeys(row["stream"] for row in rows))
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: streams.index(row["stream"])):
        key = (row["stream"], row["label"], row["hyperparameter"], row["value"], row.get("steps"), row.get("lr"))
        settings.setdefault(key, []).append(row)
    summaries: list[Summary] = []
    for (stream, label, hyperparameter, value, steps, lr), group in settings.items():
        good = tuple(row for row in group if row["status"] == OK)
        failed = len(group) - len(good)
        summaries.append(Summary(stream, label, hyperparameter, value, good, failed, steps, lr))
    return summaries


def varying(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """Return which of "steps" and "lr" is not the same for all."""
    return tuple(name for name in ("steps", "lr") if len({getattr(s, name) for s in summaries}) > 1)


def best_of_grids(summaries: Sequence[Summary], criterion: Criterion) -> list[Summary]:
    """Return for each stream, arm and budget the setting that is best by the mean over seeds.

    A setting of which a run failed cannot be the best; an arm without a setting that qualifies has no best one.
    """
    return _best_by(summaries, criterion, lambda s: (s.stream, s.label, s.steps))


def best_rates(summaries: Sequence[Summary], criterion: Criterion) -> list[Summary]:
    """Return each setting at each budget with the learning rate that is best for it; one that has no choice stays."""

    def setting(s: Summary) -> Hashable:
        return s.stream, s.label, s.hyperparameter, s.value, s.steps

    n_rates = Counter(map(setting, summaries))
    best = {setting(s): s for s in _best_by(summaries, criterion, setting)}
    return [s for s in summaries if n_rates[setting(s)] == 1 or best.get(setting(s)) is s]


def _best_by(
    summaries: Sequence[Summary], criterion: Criterion, key_of: Callable[[Summary], Hashable]
) -> list[Summary]:
    best: dict[Hashable, Summary] = {}
    for summary in summaries:
        key, value, l0 = key_of(summary), summary.mean(criterion.metric), summary.mean("l0_mean")
        too_dense = criterion.max_l0 is not None and (l0 is None or l0 > criterion.max_l0)
        if value is None or summary.n_failed or too_dense:
            continue
        if key not in best or _better(value, best[key].mean(criterion.metric), criterion):
            best[key] = summary
    return list(best.values())


def _better(value: float, other: float | None, criterion: Criterion) -> bool:
    return other is None or (value > other if criterion.higher_is_better else value < other)


def p_values(best: Sequence[Summary], criterion: Criterion) -> dict[tuple[str, str, int | None], float]:
    """Return p of Welch's test of each arm against the best arm of its stream and budget, by stream, label and steps.

    Each arm is at its best setting, samples are seeds. The settings were chosen by these same values, so p is too small
    rather than too large, and it is not corrected for the number of tests. Arms for which the test is not defined, and
    the best ones, have no p.
    """
    found: dict[tuple[str, str, int | None], float] = {}
    for stream, steps in dict.fromkeys((summary.stream, summary.steps) for summary in best):
        arms = [summary for summary in best if (summary.stream, summary.steps) == (stream, steps)]
        sign = -1 if criterion.higher_is_better else 1
        first, *others = sorted(arms, key=lambda summary: sign * (summary.mean(criterion.metric) or 0.0))
        for other in others:
            _, _, p = welch(first.values(criterion.metric), other.values(criterion.metric))
            if p is not None:
                found[stream, other.label, steps] = p
    return found


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Return t, degrees of freedom and two-sided p; None where a sample has fewer than two values or none varies."""
    if len(a) < 2 or len(b) < 2 or (stdev(a) == 0 and stdev(b) == 0):
        return None, None, None
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]  (as heavy as it is untyped)

    result: Any = stats.ttest_ind(a, b, equal_var=False)
    values = tuple(float(value) for value in (result.statistic, result.df, result.pvalue))
    t, df, p = (value if math.isfinite(value) else None for value in values)
    return t, df, p
