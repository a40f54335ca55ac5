"""The comparison on real activations: of a file, or of the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.experiments.activation_file import read_activations, shuffled_batches
from sae_lens_afa.experiments.activations_presets import PRESETS
from sae_lens_afa.experiments.arms import Arm, check_arms
from sae_lens_afa.experiments.language_model import CE_PLOT, LanguageModelSweep, sparse_limit, without_normalisation
from sae_lens_afa.experiments.measures import afa_figures, inference_sae, reconstruction_figures, standardised
from sae_lens_afa.experiments.report import Plot
from sae_lens_afa.experiments.rows import check_seeds, measured_row, training_note
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.experiments.sweep import Advance, Group, Sweep
from sae_lens_afa.experiments.text_source import TextSource
from sae_lens_afa.experiments.training import Training, build, resized, train_together
from sae_lens_afa.files import sha256_of
from sae_lens_afa.loading.models import check_device

_VARIANCE = Plot("explained_variance", "1 - explained variance", complement=True)
_STREAM = "activations"
_DEMO_HOOK, _DEMO_D_IN = "blocks.2.hook_resid_pre", 192


@dataclass(frozen=True)
class ActivationsSweep(Sweep):
    """SAEs on activations of a file, each token standardised as by SAELens' "layer_norm", or as they are.

    Attributes:
        train_file, test_file: .safetensors files of one [tokens, d_in] tensor each.
        d_sae: Latents.
        arms, training, seeds: What is compared, and how.
        raw: The activations are taken as the files have them. An SAE learns at the scale of its data: they should be
            centred, and of a norm of about sqrt(d_in).
        device: Of the SAEs.
    """

    train_file: Path
    test_file: Path
    d_sae: int
    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    raw: bool = False
    device: str = "cpu"
    train: Tensor = field(init=False, repr=False, compare=False)
    test: Tensor = field(init=False, repr=False, compare=False)
    digests: tuple[str, str] = field(init=False, repr=False, compare=False)

    title = "SAEs on activations of a file"
    plots = (_VARIANCE,)
    key_figures = (
        "l0", "explained_variance", "mse", "dead_latents", "shrinkage", "norm_ratio", "activation_ratio",
        "reconstruction_ratio", "epsilon_lbo", "mdl_bits",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_device(self.device)
        for name, path in (("train", self.train_file), ("test", self.test_file)):
            # Frozen: what is read belongs to the files that are named.
            found = read_activations(path, _OPTIONS[name])
            object.__setattr__(self, name, found if self.raw else standardised(found))
        if self.train.shape[1] != self.test.shape[1]:
            raise ValueError(
                f"activations are {self.train.shape[1]} wide and test activations {self.test.shape[1]}: they must be"
                " of the same hook."
            )
        object.__setattr__(self, "digests", (sha256_of(self.train_file), sha256_of(self.test_file)))
        if self.digests[0] == self.digests[1]:
            raise ValueError("activations and test activations are the same file; judge on tokens not trained on.")
        next(shuffled_batches(self.train, self.training.batch_size, 0))
        check_arms(self.arms, self.train.shape[1], self.d_sae)

    @property
    @override
    def criteria(self) -> Sequence[Criterion]:  # pyright: ignore[reportIncompatibleVariableOverride]
        limit = sparse_limit(self.train.shape[1])
        return (
            Criterion("explained_variance", "explained variance", True),
            Criterion("explained_variance", "explained variance", True, max_l0=limit),
        )

    @override
    def settings(self) -> dict[str, Any]:
        return {
            "sweep": "activations",
            "train": {"sha256": self.digests[0], "shape": list(self.train.shape)},
            "test": {"sha256": self.digests[1], "shape": list(self.test.shape)},
            "d_sae": self.d_sae,
            "raw": self.raw,
            **self.compared(),
        }

    @override
    def groups(self) -> list[Group]:
        members = [(_STREAM, run) for arm in self.arms for run in arm.runs()]
        return [Group(f"seed{seed}", seed, members) for seed in self.seeds]

    @override
    def run_group(self, group: Group, advance: Advance) -> list[dict[str, Any]]:
        d_in, seed = self.train.shape[1], group.seed
        runs = [run for _, run in group.members]
        saes = {run.name: build(run, d_in, self.d_sae, seed, self.device) for run in runs}
        batches = ({_STREAM: batch} for batch in shuffled_batches(self.train, self.training.batch_size, seed))
        trained = train_together(saes, dict.fromkeys(saes, _STREAM), batches, self.training, seed, self.device, advance)
        return [measured_row(_STREAM, seed, run, trained[run.name], self._measure) for run in runs]

    def _measure(self, trained: TrainingSAE[Any]) -> dict[str, Any]:
        sae = inference_sae(trained, device=self.device)
        return {**reconstruction_figures(sae, self.test), **afa_figures(sae, self.test)}

    @override
    def notes(self) -> list[str]:
        (tokens, d_in), epochs = self.train.shape, self.training.steps * self.training.batch_size / len(self.train)
        return [
            f"{tokens:,} tokens of width {d_in} to train on ({epochs:.1f} times each), {len(self.test):,} to judge on;"
            f" {self.d_sae} latents.",
            training_note(self.training),
            "Activations are as the files have them; all figures are in that space."
            if self.raw
            else "Activations are standardised token by token (SAELens' layer_norm); all figures are in that space.",
            f"A code with L0 > d_in = {d_in} is not sparse: a dense code is exact there, and most variance is"
            " explained by the densest code of a grid. MDL counts the code alone, not what it leaves out.",
        ]


_OPTIONS = {"train": "--activations", "test": "--test"}


@dataclass(frozen=True)
class DemoActivationsSweep(LanguageModelSweep):
    """See `LanguageModelSweep`; explained variance and cross-entropy are drawn."""

    plots = (_VARIANCE, CE_PLOT)
    key_figures = (
        "l0", "explained_variance", "ce_with_sae", "ce_score", "dead_latents", "shrinkage", "norm_ratio",
        "activation_ratio", "reconstruction_ratio", "epsilon_lbo", "mdl_bits",
    )  # fmt: skip


def activations_sweep(
    activations: str | Path | None = None,
    test: str | Path | None = None,
    *,
    preset: str = "quick",
    d_sae: int | None = None,
    arms: Sequence[Arm] = (),
    seeds: Sequence[int] = (),
    steps: int | None = None,
    raw: bool = False,
    device: str = "cpu",
) -> Sweep:
    """The architectures on the activations of a file, or of the bundled model where no file is given.

    Args:
        activations, test: .safetensors files of one tensor [tokens, d_in] each: to train on, to judge on.
        preset: "quick" (minutes on two cores), "full" (hours), "tiny" (seconds: says nothing about SAEs).
        d_sae: Latents; four times d_in if None.
        arms, seeds: In place of the preset's, where given.
        steps: In place of the preset's; all that the preset counts in steps changes in proportion.
        raw: Of a file: not standardised, see `ActivationsSweep`.
        device: Of model and SAEs.

    Raises:
        ValueError, FileNotFoundError: a file, preset, architecture or setting that will not do; nothing has been
            trained then.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}.")
    base = PRESETS[preset]
    preset_arms, training = resized(base.arms, base.training, steps)
    chosen: dict[str, Any] = {
        "arms": without_normalisation(arms or preset_arms),
        "training": training,
        "seeds": tuple(seeds) or base.seeds,
        "device": device,
    }
    if activations is not None and test is not None:
        width = read_activations(activations, "--activations").shape[1]
        return ActivationsSweep(Path(activations), Path(test), d_sae or 4 * width, raw=raw, **chosen)
    if raw:
        raise ValueError("raw is for the activations of a file: give both --activations and --test with it.")
    if activations is not None or test is not None:
        raise ValueError("give both --activations and --test, or none of them for the bundled model.")
    return DemoActivationsSweep(
        title="SAEs on activations of the bundled model",
        source=TextSource(context_size=base.context_size),
        hooks={"layer 2": _DEMO_HOOK},
        d_in=_DEMO_D_IN,
        d_sae=d_sae or 4 * _DEMO_D_IN,
        test_tokens=base.test_tokens,
        ce_tokens=base.ce_tokens,
        saes_per_group=len([run for arm in chosen["arms"] for run in arm.runs()]) or 1,
        **chosen,
    )
