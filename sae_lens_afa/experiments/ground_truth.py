"""SAEs on synthetic data whose features are known: do they find the right ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.experiments.arms import Arm, check_runs
from sae_lens_afa.experiments.kept_worlds import fresh_batches, made, pooled_batches
from sae_lens_afa.experiments.measures import inference_sae, measure
from sae_lens_afa.experiments.presets import Several, changed, preset_arms
from sae_lens_afa.experiments.rows import measured_row, training_note
from sae_lens_afa.experiments.side_by_side import OwnRandom, Training, build, train_together
from sae_lens_afa.experiments.statistics import Criterion
from sae_lens_afa.experiments.sweep import Advance, Plot, RunGroup, Sweep, by_steps
from sae_lens_afa.experiments.worlds import WORLDS

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel

_TEST_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class GroundTruthSweep(Sweep):
    """SAEs as wide as the number of true features, scored by what they find.

    Attributes:
        worlds: Names in `WORLDS`; the data is made on `device`, a pool on the CPU.
        test_tokens: Samples on which the SAEs are judged.
        pool: Train on so many samples, drawn once, kept on disk and used again and again in another order; None trains
            on new ones in every step.

    Example:
        >>> from sae_lens_afa.experiments import Arm, GroundTruthSweep, ground_truth_sweep
        >>> training = ground_truth_sweep("quick").training
        >>> arms = (Arm("topk", "k", (3,)),)
        >>> sweep = GroundTruthSweep(worlds=("zipf-2x",), test_tokens=1024, arms=arms, training=training, seeds=(0, 1))
        >>> [group.name for group in sweep.groups()]
        ['zipf-2x-seed0-1000-steps', 'zipf-2x-seed1-1000-steps']
    """

    title: str = "SAEs on synthetic data with known features"
    worlds: tuple[str, ...]
    test_tokens: int
    pool: int | None = None

    growing = ("worlds", *Sweep.growing)
    plots = (
        Plot("mcc", "1 - MCC", complement=True),
        Plot("f1", "1 - F1", complement=True),
        Plot("mse", "mean squared error"),
    )
    key_metrics = ("l0_mean", "explained_variance_raw", "true_l0", "mcc", "f1", "uniqueness", "dead_latents")

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.worlds:
            if name not in WORLDS:
                raise ValueError(f"unknown world {name!r}; there are {', '.join(WORLDS)}.")
            check_runs(self.runs(), WORLDS[name].hidden_dim, WORLDS[name].latents)
        if not self.worlds:
            raise ValueError(f"worlds must name at least one of {', '.join(WORLDS)}.")
        if self.test_tokens < 2:
            raise ValueError(f"test_tokens must be at least 2, got {self.test_tokens}.")
        if self.pool is not None and self.pool < self.training.batch_size:
            raise ValueError(f"pool must be at least a batch of {self.training.batch_size} samples, got {self.pool}.")

    @override
    def criteria(self) -> Sequence[Criterion]:
        return (Criterion("mcc", "MCC", True), Criterion("f1", "F1", True))

    @override
    def settings(self) -> dict[str, Any]:
        return {
            "sweep": "ground-truth",
            "worlds": {name: asdict(WORLDS[name]) for name in self.worlds},
            **self.compared(),
            "test_tokens": self.test_tokens,
            "pool": self.pool,
        }

    @override
    def groups(self) -> list[RunGroup]:
        return [
            RunGroup(f"{world}-seed{seed}-{steps}-steps", seed, [(world, run) for run in runs])
            for steps, runs in by_steps(self.runs())
            for world in self.worlds
            for seed in self.seeds
        ]

    @override
    def run_group(self, group: RunGroup, advance: Advance) -> list[dict[str, Any]]:
        name, seed = group.members[0][0], group.seed
        world, model = WORLDS[name], made(name, self.device)
        runs = {run.key: run for _, run in group.members}
        saes = {key: build(run, world.hidden_dim, world.latents, seed, self.device) for key, run in runs.items()}
        size = self.training.batch_size
        if self.pool:
            data = pooled_batches(name, self.pool, size, seed)
        else:
            data = fresh_batches(name, size, seed, self.device)
        batches = ({name: batch} for batch in data)
        training = self.training_of(group)
        trained = train_together(saes, dict.fromkeys(saes, name), batches, training, seed, self.device, advance, runs)
        test = self._test_data(model)
        return [
            measured_row(name, seed, run, trained[key], lambda sae: self._measure(sae, model, test))
            for key, run in runs.items()
        ]

    def _test_data(self, model: SyntheticModel) -> Float[Tensor, "tokens d_in"]:
        sizes = [min(_TEST_BATCH, self.test_tokens - i) for i in range(0, self.test_tokens, _TEST_BATCH)]
        with OwnRandom("test", 0, self.device)():
            return torch.cat([model.sample(size) for size in sizes])

    def _measure(self, trained: TrainingSAE[Any], model: SyntheticModel, test: Tensor) -> dict[str, Any]:
        from sae_lens.synthetic import eval_sae_on_synthetic_data

        sae = inference_sae(trained, device=self.device)
        with OwnRandom("test", 0, self.device)():  # the same samples as `test`, with their features
            scores = eval_sae_on_synthetic_data(
                sae, model.feature_dict, model.activation_generator, self.test_tokens, _TEST_BATCH
            )
        return {
            **measure(sae, test),
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
            *(f"`{name}`: {w.about}; {w.hidden_dim} dimensions, {w.num_features:,} features, {w.latents:,} latents."
              for name, w in ((name, WORLDS[name]) for name in self.worlds)),
            training_note(self.training, self.budgets, self.rates),
            f"Samples are from a pool of {self.pool:,}, used again in another order." if self.pool else
            "Samples are new in every step.",
            "MSE, explained variance (raw) and shrinkage are in the space of the data, AFA metrics in the one in which"
            " an SAE decodes (its input normalisation).",
            "MCC, F1 and uniqueness are SAELens': MCC by the best one-to-one match of decoder rows and features; F1 of"
            " each latent as a detector of its nearest feature, mean over latents, dead ones included as 0. Real"
            " data has no such score to choose a setting by.",
            "L0 without features is that of a token in which no feature fires: what is active there is spurious.",
        ]  # fmt: skip


@torch.no_grad()
def _l0_without_features(sae: SAE[Any]) -> int:
    """Return L0 on a token in which no feature fires: what is active there is spurious."""
    acts = sae.encode(torch.zeros(1, sae.cfg.d_in, device=sae.device, dtype=sae.dtype))
    return int(torch.count_nonzero(acts.to_dense()))


PRESETS = {
    "quick": GroundTruthSweep(
        worlds=("zipf-4x",),
        arms=preset_arms("ground-truth", "quick", phase=400, steps=1000),
        training=Training(
            steps=1000, batch_size=256, lr=2e-3, dead_feature_window=100, lr_warm_up_steps=50, lr_decay_steps=300
        ),
        seeds=(0, 1, 2),
        test_tokens=16_384,
    ),
    "full": GroundTruthSweep(
        worlds=("zipf-2x", "zipf-4x", "zipf-8x", "correlated", "hierarchical"),
        arms=preset_arms("ground-truth", "full", phase=1000, steps=2500),
        training=Training(
            steps=2500, batch_size=256, lr=1e-3, dead_feature_window=125, lr_warm_up_steps=100, lr_decay_steps=600
        ),
        seeds=(0, 1, 2),
        test_tokens=32_768,
    ),
    "tiny": GroundTruthSweep(
        worlds=("tiny",),
        arms=(
            Arm("topk", "k", (2, 3)),
            Arm("top_afa", "afa_coefficient", (1 / 32,), {"normalize_activations": "layer_norm"}),
        ),
        training=Training(steps=20, batch_size=32, lr=1e-2, dead_feature_window=5),
        seeds=(0, 1),
        test_tokens=256,
    ),
}


def ground_truth_sweep(
    preset: str = "quick",
    *,
    worlds: Sequence[str] = (),
    arms: Sequence[Arm] = (),
    seeds: Sequence[int] = (),
    steps: Several[int] = None,
    lr: Several[float] = None,
    batch_size: int | None = None,
    pool: int | None = None,
    device: str = "cpu",
) -> GroundTruthSweep:
    """Return a preset of the sweep over synthetic worlds, or a change of one.

    Args:
        preset: "quick" (minutes on two cores), "full" (hours), "tiny" (seconds: says nothing about SAEs).
        worlds, arms, seeds: In place of the preset's, where given.
        steps: Training steps in place of the preset's, one number or several: each run is made with each. All that
            the preset counts in steps changes in proportion.
        lr: Learning rate in place of the preset's, one or several: each run is made with each.
        batch_size: Samples of each step in place of the preset's.
        pool: Train on so many samples that are kept on disk (see `cache_folder`), not on new ones in every step.
        device: Of the SAEs and the data.

    Raises:
        ValueError: an unknown preset, world, architecture or setting; nothing has been trained then.

    Example:
        >>> from sae_lens_afa.experiments import Arm, ground_truth_sweep
        >>> sweep = ground_truth_sweep("quick", worlds=["zipf-2x"], arms=[Arm("topk", "k", (2, 4))], steps=200)
        >>> [(run.name, run.steps) for run in sweep.runs()], sweep.seeds
        ([('topk k=2', 200), ('topk k=4', 200)], (0, 1, 2))
    """
    return changed(
        PRESETS, preset, steps, lr, batch_size, worlds=tuple(worlds), arms=tuple(arms), seeds=tuple(seeds), pool=pool,
        device=device,
    )  # fmt: skip
