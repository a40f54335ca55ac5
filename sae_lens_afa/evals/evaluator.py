"""AFA metrics beside whatever SAELens' runners log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_lens_afa.evals.judge import SAEJudge

Evaluator = Callable[[TrainingSAE[Any], Iterator[Tensor], ActivationScaler], dict[str, Any]]


class AFAEvaluator:
    """An evaluator for SAELens' trainers that adds the metrics of an `AFAResult` under `afa/...`.

    It judges the SAE as it is in training, with the trainer's scaling. Metrics that are not defined are left out.
    SAELens calls evaluators only with `log_to_wandb=True`.

    Args:
        base_evaluator: The evaluator to wrap; its metrics come first and are unchanged.
        n_batches: Training batches to judge. They are taken from the run's own stream, which goes on after them.
        activations: Raw activations [..., d_in] to judge instead: held-out ones, and nothing is taken.

    Raises:
        ValueError: `n_batches` < 1.

    Give it to SAELens' runners: `runner.evaluator = AFAEvaluator(runner.evaluator)` for one SAE, `evaluator=
    AFAEvaluator()` in the config of several.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> from sae_lens.training.activation_scaler import ActivationScaler
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=32))
        >>> evaluator = afa.AFAEvaluator(activations=torch.randn(100, 8))
        >>> evaluator(sae, iter([]), ActivationScaler())["afa/n_tokens"]
        100
    """

    def __init__(
        self,
        base_evaluator: Evaluator | None = None,
        *,
        n_batches: int = 1,
        activations: Tensor | None = None,
    ) -> None:
        if n_batches < 1:
            raise ValueError(f"n_batches must be at least 1, got {n_batches}.")
        self.base_evaluator, self.n_batches, self.activations = base_evaluator, n_batches, activations

    @torch.no_grad()
    def __call__(
        self, sae: TrainingSAE[Any], data_provider: Iterator[Tensor], activation_scaler: ActivationScaler
    ) -> dict[str, Any]:
        """Return the base evaluator's metrics and ours."""
        logged = {} if self.base_evaluator is None else dict(self.base_evaluator(sae, data_provider, activation_scaler))
        judge = SAEJudge(sae, activation_scaler=activation_scaler)
        batches: Iterable[Tensor] = islice(data_provider, self.n_batches)
        if self.activations is not None:
            batches = judge.space.rows(self.activations).split(4096)
        for batch in batches:
            judge.add(batch)
        metrics = judge.metrics
        # A diverged SAE is for the log to show, not a reason to end the run.
        counts = {"n_tokens": 0, "n_nonfinite": metrics.n_nonfinite, "d_sae": metrics.d_sae}
        values = metrics.compute().to_dict() if metrics.n_tokens else counts
        return logged | {f"afa/{name}": value for name, value in values.items() if value is not None}
