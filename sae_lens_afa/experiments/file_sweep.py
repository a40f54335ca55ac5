"""SAEs on activations of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.experiments.activation_file import read_matrix, shuffled_batches
from sae_lens_afa.experiments.arms import Run, check_runs, without_normalisation
from sae_lens_afa.experiments.measures import inference_sae, measure, standardised
from sae_lens_afa.experiments.model_sweep import sparse_limit
from sae_lens_afa.experiments.rows import measured_row, training_note
from sae_lens_afa.experiments.side_by_side import build, train_together
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.experiments.sweep import Advance, Plot, RunGroup, Sweep, by_steps
from sae_lens_afa.files import sha256_of

_STREAM = "activations"
# The arms may normalise their input in different ways, so they are compared in the space of the file.
_VARIANCE = "explained_variance_raw"


class FileActivations(NamedTuple):
    """Contents of the two files of a sweep.

    Attributes:
        train, test: Activations, standardised where the sweep says so.
        digests: SHA-256 of the files.
    """

    train: Float[Tensor, "tokens d_in"]
    test: Float[Tensor, "test_tokens d_in"]
    digests: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ActivationsSweep(Sweep):
    """SAEs on activations of a file, each token standardised as by SAELens' "layer_norm", or as they are.

    The files are read when the sweep is checked or run.

    Attributes:
        train_file, test_file: .safetensors files of one [tokens, d_in] tensor each.
        d_sae: Latents; four times d_in if None.
        raw: The activations are taken as the files have them. An SAE learns at the scale of its data: they should be
            centred, and of a norm of about sqrt(d_in).

    Example:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from sae_lens_afa.experiments import activations_sweep
        >>> for name, tokens in (("train", 512), ("test", 64)):
        ...     save_file({"activations": torch.randn(tokens, 16)}, f"{name}.safetensors")
        >>> sweep = activations_sweep("train.safetensors", "test.safetensors", preset="quick")
        >>> sweep.check()
        >>> sweep.d_in, sweep.latents
        (16, 64)
    """

    title: str = "SAEs on activations of a file"
    train_file: Path
    test_file: Path
    d_sae: int | None = None
    raw: bool = False

    plots = (Plot(_VARIANCE, "1 - explained variance", complement=True),)
    key_metrics = (
        "l0_mean", _VARIANCE, "mse", "dead_latents", "shrinkage", "norm_ratio_median", "epsilon_lbo_median",
    )  # fmt: skip

    @cached_property
    def data(self) -> FileActivations:
        """Contents of the files.

        Raises:
            FileNotFoundError, ValueError: a file that will not do.
        """
        train, test = read_matrix(self.train_file, "activations"), read_matrix(self.test_file, "test")
        if train.shape[1] != test.shape[1]:
            raise ValueError(
                f"activations are {train.shape[1]} wide and test activations {test.shape[1]}: they must be of the same"
                " hook."
            )
        digests = sha256_of(self.train_file), sha256_of(self.test_file)
        if digests[0] == digests[1]:
            raise ValueError("activations and test activations are the same file; judge on tokens not trained on.")
        next(shuffled_batches(train, self.training.batch_size, 0))
        return FileActivations(*((train, test) if self.raw else (standardised(train), standardised(test))), digests)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.data.train.shape[1]

    @property
    def latents(self) -> int:
        """Latents of each SAE."""
        return 4 * self.d_in if self.d_sae is None else self.d_sae

    @override
    def check(self) -> None:
        super().check()
        check_runs(self.runs(), self.d_in, self.latents)

    @override
    def runs(self) -> list[Run]:
        return without_normalisation(super().runs())

    @override
    def criteria(self) -> Sequence[Criterion]:
        title = "explained variance (raw)"
        return (
            Criterion(_VARIANCE, title, True),
            Criterion(_VARIANCE, title, True, max_l0=sparse_limit(self.d_in)),
        )

    @override
    def settings(self) -> dict[str, Any]:
        data = self.data
        return {
            "sweep": "activations",
            "train": {"sha256": data.digests[0], "shape": list(data.train.shape)},
            "test": {"sha256": data.digests[1], "shape": list(data.test.shape)},
            "d_sae": self.latents,
            "raw": self.raw,
            **self.compared(),
        }

    @override
    def groups(self) -> list[RunGroup]:
        return [
            RunGroup(f"seed{seed}-{steps}-steps", seed, [(_STREAM, run) for run in runs])
            for steps, runs in by_steps(self.runs())
            for seed in self.seeds
        ]

    @override
    def run_group(self, group: RunGroup, advance: Advance) -> list[dict[str, Any]]:
        runs, seed = {run.key: run for _, run in group.members}, group.seed
        saes = {key: build(run, self.d_in, self.latents, seed, self.device) for key, run in runs.items()}
        batches = ({_STREAM: batch} for batch in shuffled_batches(self.data.train, self.training.batch_size, seed))
        streams, training = dict.fromkeys(saes, _STREAM), self.training_of(group)
        trained = train_together(saes, streams, batches, training, seed, self.device, advance, runs)
        return [measured_row(_STREAM, seed, run, trained[key], self._measure) for key, run in runs.items()]

    def _measure(self, trained: TrainingSAE[Any]) -> dict[str, float]:
        return measure(inference_sae(trained, device=self.device), self.data.test)

    @override
    def notes(self) -> list[str]:
        tokens = len(self.data.train)
        steps = self.budgets or (self.training.steps,)
        epochs = " or ".join(f"{number * self.training.batch_size / tokens:.1f}" for number in steps)
        space = "as the files have them" if self.raw else "standardised token by token (SAELens' layer_norm)"
        return [
            f"{tokens:,} tokens of width {self.d_in} to train on ({epochs} times each), {len(self.data.test):,} to"
            f" judge on; {self.latents} latents.",
            training_note(self.training, self.budgets, self.rates),
            f"Activations are {space}; MSE, explained variance (raw) and shrinkage are in that space, AFA metrics in"
            " the one in which an SAE decodes.",
            f"A code with L0 > d_in = {self.d_in} is not sparse: a dense code is exact there, and most variance is"
            " explained by the densest code of a grid. MDL counts the code alone, not what it leaves out.",
        ]
