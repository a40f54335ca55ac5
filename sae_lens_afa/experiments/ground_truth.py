"""Does it find the right features? SAEs on synthetic data whose features are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.experiments.arms import Arm, check_arms
from sae_lens_afa.experiments.ground_truth_presets import PRESETS
from sae_lens_afa.experiments.measures import afa_figures, inference_sae, reconstruction_figures
from sae_lens_afa.experiments.report import Plot
from sae_lens_afa.experiments.rows import check_seeds, measured_row, training_note
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.experiments.sweep import Advance, Group, Sweep
from sae_lens_afa.experiments.training import OwnRandom, Training, build, resized, train_together
from sae_lens_afa.experiments.worlds import WORLDS
from sae_lens_afa.loading.models import check_device

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel

_TEST_BATCH = 4096


@dataclass(frozen=True)
class GroundTruthSweep(Sweep):
    """SAEs as wide as the number of true features, scored by what they find.

    Attributes:
        worlds: Names in `WORLDS`.
        arms: What is compared.
        training: How.
        seeds: Of the SAEs and their data.
        test_tokens: Samples on which the SAEs are judged.
        device: Of the SAEs; the data is made on the CPU.
    """

    worlds: tuple[str, ...]
    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    test_tokens: int
    device: str = "cpu"

    growing = ("worlds", "arms", "seeds")
    title = "SAEs on synthetic data with known features"
    criteria = (Criterion("mcc", "MCC", True), Criterion("f1", "F1", True))
    plots = (
        Plot("mcc", "1 - MCC", complement=True),
        Plot("f1", "1 - F1", complement=True),
        Plot("mse", "mean squared error"),
    )
    key_figures = (
        "l0", "true_l0", "explained_variance", "mcc", "f1", "uniqueness", "dead_latents", "shrinkage", "norm_ratio",
        "epsilon_lbo", "mdl_bits",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in self.worlds:
            if name not in WORLDS:
                raise ValueError(f"unknown world {name!r}; there are {', '.join(WORLDS)}.")
            check_arms(self.arms, WORLDS[name].hidden_dim, WORLDS[name].num_features)
        if not self.worlds:
            raise ValueError(f"worlds must name at least one of {', '.join(WORLDS)}.")
        check_seeds(self.seeds)
        if self.test_tokens < 2:
            raise ValueError(f"test_tokens must be at least 2, got {self.test_tokens}.")
        check_device(self.device)

    @override
    def settings(self) -> dict[str, Any]:
        return {
            "sweep": "ground-truth",
            "worlds": {name: asdict(WORLDS[name]) for name in self.worlds},
            **self.compared(),
            "test_tokens": self.test_tokens,
        }

    @override
    def groups(self) -> list[Group]:
        runs = [run for arm in self.arms for run in arm.runs()]
        return [
            Group(f"{world}-seed{seed}", seed, [(world, run) for run in runs])
            for world in self.worlds
            for seed in self.seeds
        ]

    @override
    def run_group(self, group: Group, advance: Advance) -> list[dict[str, Any]]:
        name, seed = group.members[0][0], group.seed
        world, model = WORLDS[name], made(name)
        runs = [run for _, run in group.members]
        saes = {run.name: build(run, world.hidden_dim, world.num_features, seed, self.device) for run in runs}
        batches = ({name: batch} for batch in samples(model, self.training.batch_size, seed))
        trained = train_together(saes, dict.fromkeys(saes, name), batches, self.training, seed, self.device, advance)
        test = self._test_data(model)
        return [
            measured_row(name, seed, run, trained[run.name], lambda sae: self._measure(sae, model, test))
            for run in runs
        ]

    def _test_data(self, model: SyntheticModel) -> Tensor:
        sizes = [min(_TEST_BATCH, self.test_tokens - i) for i in range(0, self.test_tokens, _TEST_BATCH)]
        with OwnRandom("test", 0)():
            return torch.cat([model.sample(size) for size in sizes])

    def _measure(self, trained: TrainingSAE[Any], model: SyntheticModel, test: Tensor) -> dict[str, Any]:
        from sae_lens.synthetic import eval_sae_on_synthetic_data

        sae = inference_sae(trained)
        with OwnRandom("test", 0)():  # the same samples as `test`, with their features
            scores = eval_sae_on_synthetic_data(
                sae, model.feature_dict, model.activation_generator, self.test_tokens, _TEST_BATCH
            )
        return {
            **reconstruction_figures(sae, test),
            **afa_figures(sae, test),
            "l0_empty": _l0_without_features(sae),
            "true_l0": scores.true_l0,
            "mcc": scores.mcc,
            "uniqueness": scores.uniqueness,
            "f1": scores.classification.f1_score,
            "precision": scores.classification.precision,
            "recall": scores.classification.recall,
        }

    @override
    def notes(self) -> list[str]:
        return [
            *(f"`{name}`: {w.about}; {w.hidden_dim} dimensions, {w.num_features} features, as many latents."
              for name, w in ((name, WORLDS[name]) for name in self.worlds)),
            training_note(self.training),
            "MSE, explained variance and shrinkage are in the space of the data, AFA figures in the one in which an"
            " SAE decodes (its input normalisation).",
            "MCC, F1 and uniqueness are SAELens': MCC by the best one-to-one match of decoder rows and features; F1 of"
            " each latent as a detector of its nearest feature, mean over latents, dead ones included as 0. Real"
            " data has no such score to choose a setting by.",
            "`l0_empty` in `runs.csv`, of newer runs: L0 of a token in which no feature fires.",
        ]  # fmt: skip


@torch.no_grad()
def _l0_without_features(sae: SAE[Any]) -> int:
    """L0 on a token in which no feature fires: what it has is spurious."""
    acts = sae.encode(torch.zeros(1, sae.cfg.d_in, device=sae.device, dtype=sae.dtype))
    return int(torch.count_nonzero(acts.to_dense()))


@lru_cache
def made(world: str) -> SyntheticModel:
    """The generator of a world; making its features quasi-orthogonal takes seconds."""
    return WORLDS[world].make()


def samples(model: SyntheticModel, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [batch_size, hidden_dim] that depend on the seed only."""
    draw = OwnRandom("data", seed)
    while True:
        with draw():
            batch = model.sample(batch_size)
        yield batch


def ground_truth_sweep(
    preset: str = "quick",
    *,
    worlds: Sequence[str] = (),
    arms: Sequence[Arm] = (),
    seeds: Sequence[int] = (),
    steps: int | None = None,
    device: str = "cpu",
) -> GroundTruthSweep:
    """A sweep of fixed size, or a change of one.

    Args:
        preset: "quick" (minutes on two cores), "full" (hours), "tiny" (seconds: says nothing about SAEs).
        worlds, arms, seeds: In place of the preset's, where given.
        steps: In place of the preset's; all that the preset counts in steps changes in proportion.
        device: Of the SAEs.

    Raises:
        ValueError: an unknown preset, world, architecture or setting; nothing has been trained then.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}.")
    base = PRESETS[preset]
    preset_arms, training = resized(base.arms, base.training, steps)
    return GroundTruthSweep(
        worlds=tuple(worlds) or base.worlds,
        arms=tuple(arms) or preset_arms,
        training=training,
        seeds=tuple(seeds) or base.seeds,
        test_tokens=base.test_tokens,
        device=device,
    )
