"""Rows of results, of runs that succeeded and of those that did not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_lens.saes.sae import TrainingSAE

from sae_lens_afa.experiments.arms import Run
from sae_lens_afa.experiments.side_by_side import Trained, Training
from sae_lens_afa.experiments.statistics import OK

_IDENTITY = ("stream", "seed", "label", "architecture", "hyperparameter", "value", "settings", "steps", "lr")


def identity(stream: str, seed: int, run: Run) -> dict[str, Any]:
    """Return the columns that identify a run."""
    return {
        "stream": stream, "seed": seed, "label": run.label, "architecture": run.architecture,
        "hyperparameter": run.hyperparameter, "value": run.value, "settings": dict(run.settings),
        "steps": run.steps, "lr": run.lr,
    }  # fmt: skip


def key_of(row: Mapping[str, Any]) -> str:
    """Return a text that two rows share if they are of the same run."""
    return json.dumps([float(row[name]) if name == "value" else row[name] for name in _IDENTITY], sort_keys=True)


def measured_row(
    stream: str, seed: int, run: Run, trained: Trained, measure: Callable[[TrainingSAE[Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the row of a run: its metrics, or in `status` why there are none.

    Args:
        stream: Data that it was trained on.
        seed: Of the run.
        run: What was trained.
        trained: What came of it.
        measure: Returns the metrics of a trained SAE.
    """
    cfg = trained.sae.cfg
    row = {**identity(stream, seed, run), "status": OK, "d_in": cfg.d_in, "d_sae": cfg.d_sae}
    if trained.failure:
        return {**row, "status": f"failed: {trained.failure}"}
    try:
        return {**row, **measure(trained.sae)}
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        return {**row, "status": f"failed: measuring: {type(error).__name__}: {reason}"}


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse no seeds, or one that is there twice: that is no second sample.

    Raises:
        ValueError: saying which.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be different numbers >= 0, at least one, got {list(seeds)}.")


def training_note(training: Training, budgets: Sequence[int] = (), rates: Sequence[float] = ()) -> str:
    """Return steps, rates and windows in words, for the report."""
    steps = " or ".join(f"{number:,}" for number in budgets or (training.steps,))
    lr = " or ".join(f"{number:g}" for number in rates or (training.lr,))
    windows = training.steps / training.dead_feature_window
    return (
        f"Every SAE: {steps} steps of {training.batch_size} tokens, Adam with learning rate {lr} where an arm"
        f" has none of its own. The training is"
        f" {windows:.0f} times as long as the window without firing after which a latent counts as dead."
    )
