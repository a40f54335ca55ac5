"""Summary of a run: metrics of the SAE, the folder that it is in, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_lens_afa._support import warn
from sae_lens_afa.evals.judge import evaluate_activations
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.loading.inference import inference_view

# At most about as many tokens are measured.
MAX_TOKENS = 16_384
# Beyond these shares of the k that the saved threshold is to give, a warning says so.
_LOW, _HIGH = 0.5, 2.0


@dataclass(frozen=True)
class TrainingSummary:
    """Outcome of a training run; `str()` is the text for the terminal.

    Attributes:
        name: The SAE's architecture.
        folder: Folder in which the SAE was saved; None if it was not.
        result: Its metrics, in the form in which it is saved, on tokens of the run's own stream.
        n_silent: Latents that no token of the run's last sampling window activated.
        window: Tokens of that window.
        seconds: Time of the run.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=8, d_sae=16))
        >>> result = afa.evaluate_activations(sae, torch.randn(50, 8))
        >>> summary = afa.runner.TrainingSummary("top_afa", None, result, n_silent=0, window=50, seconds=1.0)
        >>> print(str(summary).splitlines()[0])
        top_afa, trained
    """

    name: str
    folder: Path | None
    result: AFAResult
    n_silent: int
    window: int
    seconds: float

    def __str__(self) -> str:
        result = self.result
        rows = [
            ("active features per token (L0)", _number(result.l0_mean, ".1f") + _range(result)),
            ("explained variance", _number(result.explained_variance, ".4f")),
            ("latents silent in the last " + f"{self.window:,} tokens", f"{self.n_silent:,} of {result.d_sae:,}"),
            ("measured on", f"{result.n_tokens:,} tokens of the training text, in the SAE's own normalisation"),
            ("time", _time(self.seconds)),
        ]
        if result.n_nonfinite:
            rows.insert(3, ("tokens with NaN or infinity, left out", f"{result.n_nonfinite:,}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{self.name}, trained", *(f"  {name:<{width}}  {value}" for name, value in rows)]
        if self.folder is not None:
            lines += [
                "",
                f"saved in {self.folder}; load it with",
                f'  import sae_lens_afa; from sae_lens import SAE; sae = SAE.load_from_disk("{self.folder}")',
                "judge it with",
                f"  sae-lens-afa eval --sae {self.folder} --output {self.folder}-eval",
            ]
        return "\n".join(lines)


def summarise(
    trainer: SAETrainer[Any, Any], sae: TrainingSAE[Any], stream: Iterator[Tensor], folder: Path | None, seconds: float
) -> TrainingSummary:
    """Measure an SAE that was trained, as it is saved, on the next batches of its stream.

    Args:
        trainer: The trainer, after `fit`.
        sae: The SAE, with the input's scaling folded into its weights.
        stream: Batches of raw activations [tokens, d_in].
        folder: Where it was saved.
        seconds: Time of the run.

    Raises:
        TypeError: an architecture that AFA does not judge.
    """
    tokens = min(MAX_TOKENS, trainer.cfg.total_training_samples)
    return TrainingSummary(
        name=sae.cfg.architecture(),
        folder=folder,
        result=evaluate_activations(inference_view(sae), _batches(stream, tokens)),
        n_silent=int((trainer.act_freq_scores == 0).sum()),
        window=int(trainer.n_frac_active_samples),
        seconds=seconds,
    )


def _batches(stream: Iterator[Tensor], tokens: int) -> Iterable[Tensor]:
    """Yield batches until there are as many tokens."""
    while tokens > 0:
        batch = next(stream)
        tokens -= len(batch)
        yield batch


@torch.no_grad()
def mean_l0(sae: TrainingSAE[Any], activations: Tensor) -> float:
    """Return the mean L0 of raw activations [tokens, d_in], in the form in which the SAE is saved."""
    acts = inference_view(sae).encode(activations)
    acts = acts.to_dense() if acts.is_sparse else acts
    return float(torch.count_nonzero(acts, dim=-1).float().mean())


def warn_of_a_missed_k(sae: TrainingSAE[Any], activations: Tensor) -> None:
    """Warn where a batch shares out its features and the threshold that is saved gives far fewer or more of them."""
    if not isinstance(sae, BatchTopKTrainingSAE):
        return
    k, l0 = sae.cfg.k, mean_l0(sae, activations)
    if not _LOW * k < l0 < _HIGH * k:
        warn(
            f"{sae.cfg.architecture()} was trained for k = {k:g} active features per token, but with the threshold that"
            f" it is saved with it has {l0:.1f}: train for more steps.",
        )


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _range(result: AFAResult) -> str:
    if result.l0_q05 is None or result.l0_q95 is None:
        return ""
    return f"   5-95 % of tokens: {result.l0_q05:.0f}-{result.l0_q95:.0f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
