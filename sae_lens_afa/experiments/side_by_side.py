"""SAEs trained side by side on one stream of activations, each by SAELens' own trainer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_lens_afa.experiments.arms import Run
from sae_lens_afa.experiments.steering import L0Steering

# Looking at a loss waits for the device, so it is not done every step.
_CHECK_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings by which every SAE of a sweep is trained: equal steps on equal data.

    Attributes:
        steps, batch_size: Training steps and tokens of each.
        lr, adam_beta2: Of Adam; SAELens' trainer clips gradients at norm 1.
        lr_warm_up_steps, lr_decay_steps: Linear rise from 0 at the start, linear fall to 0.1 lr at the end.
        dead_feature_window: Steps without firing after which a latent counts as dead, and auxiliary losses train it.
    """

    steps: int
    batch_size: int
    lr: float
    dead_feature_window: int
    adam_beta2: float = 0.999
    lr_warm_up_steps: int = 0
    lr_decay_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "dead_feature_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}.")
        if self.lr_warm_up_steps + self.lr_decay_steps > self.steps:
            raise ValueError(
                f"steps must be at least lr_warm_up_steps + lr_decay_steps ="
                f" {self.lr_warm_up_steps + self.lr_decay_steps}, got {self.steps}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def with_steps(self, steps: int) -> Training:
        """Return it with more or fewer steps: warm-up, decay and dead-latent window in proportion."""
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        names = ("lr_warm_up_steps", "lr_decay_steps", "dead_feature_window")
        scaled = {name: getattr(self, name) * steps // self.steps for name in names}
        return replace(self, steps=steps, **{**scaled, "dead_feature_window": max(1, scaled["dead_feature_window"])})

    def trainer_config(self, device: str) -> SAETrainerConfig:
        """Return the configuration of SAELens' trainer."""
        return SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
            total_training_samples=self.steps * self.batch_size, train_batch_size_samples=self.batch_size,
            device=device, autocast=False, lr=self.lr, lr_end=self.lr / 10, lr_scheduler_name="constant",
            lr_warm_up_steps=self.lr_warm_up_steps, lr_decay_steps=self.lr_decay_steps, n_restart_cycles=1,
            adam_beta1=0.9, adam_beta2=self.adam_beta2, dead_feature_window=self.dead_feature_window,
            feature_sampling_window=max(2 * self.dead_feature_window, 1000), n_batches_for_norm_estimate=1,
            logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip


@dataclass
class Trained:
    """An SAE after its training.

    Attributes:
        sae: The SAE.
        failure: What went wrong, in one line; empty if nothing did.
    """

    sae: TrainingSAE[Any]
    failure: str = ""


def own_generator(use: str, seed: int) -> torch.Generator:
    """Return a generator for one use of a run's seed: weights and data of one seed are not the same numbers."""
    return torch.Generator().manual_seed(zlib.crc32(f"{use} {seed}".encode()))


class OwnRandom:
    """A random state of its own: what is drawn with it does not depend on what others draw.

    Args:
        use, seed: What the state depends on.
        device: Where is drawn, beside the CPU.
    """

    def __init__(self, use: str, seed: int, device: str = "cpu") -> None:
        generator = own_generator(use, seed)
        self._generators = [torch.default_generator]
        self._states = [generator.get_state()]
        if torch.device(device).type == "cuda":
            torch.cuda.init()
            there = torch.cuda.default_generators[torch.empty(0, device=device).get_device()]
            self._generators.append(there)
            self._states.append(torch.Generator(there.device).manual_seed(generator.initial_seed()).get_state())

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Let torch draw from this state, and put the other one back."""
        outer = [generator.get_state() for generator in self._generators]
        self._set(self._states)
        try:
            yield
        finally:
            self._states = [generator.get_state() for generator in self._generators]
            self._set(outer)

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def build(run: Run, d_in: int, d_sae: int, seed: int, device: str) -> TrainingSAE[Any]:
    """Return an untrained SAE; its first weights depend on the run and the seed only."""
    with OwnRandom("weights", seed)():
        return get_sae_training_class(run.architecture)[0](run.sae_config(d_in, d_sae, device))


def train_together(
    saes: Mapping[str, TrainingSAE[Any]],
    streams: Mapping[str, str],
    batches: Iterator[Mapping[str, Tensor]],
    training: Training,
    seed: int = 0,
    device: str = "cpu",
    advance: Callable[[int], object] = lambda _: None,
    runs: Mapping[str, Run] | None = None,
) -> dict[str, Trained]:
    """Train every SAE on the same batches, `training.steps` of them, with SAELens' `SAETrainer`.

    It is what SAELens' `MultiSAETrainer` does, except that an SAE that fails (an exception, a loss that is not
    finite) is left behind and the others go on, and that what one draws at random changes no other.

    Args:
        saes: SAEs by name.
        streams: The key of each SAE's activations in a batch.
        batches: Activations [batch_size, d_in] by key.
        training: Steps, rates, windows.
        seed: Of what the SAEs draw while they are trained.
        device: Where the SAEs are.
        advance: Called after each step with the number of SAEs that it covers.
        runs: What the SAEs are, by name: a learning rate of its own and a target L0 are taken from there.

    Raises:
        RuntimeError: out of memory, which is no fault of an SAE.
    """
    trainers: dict[str, SAETrainer[Any, Any]] = {}
    steering: dict[str, L0Steering] = {}
    for name, sae in saes.items():
        run = (runs or {}).get(name)
        own = training if run is None or run.lr is None else replace(training, lr=run.lr)
        trainers[name] = SAETrainer(own.trainer_config(device), sae, data_provider=iter(()))
        if run is not None and run.target_l0 is not None:
            steering[name] = L0Steering(trainers[name], run.target_l0)
    trained = {name: Trained(sae) for name, sae in saes.items()}
    draws = {name: OwnRandom("training", seed, device) for name in saes}
    for step in range(training.steps):
        batch = next(batches)
        for name, trainer in trainers.items():
            if not trained[name].failure:
                with draws[name]():
                    trained[name].failure = _step(trainer, batch[streams[name]].to(device), step, steering.get(name))
        advance(len(trainers))
    for result in trained.values():
        result.sae.eval()
        if not result.failure and not all(p.isfinite().all() for p in result.sae.parameters()):
            result.failure = "parameters are not finite after training"
    return trained


def _step(trainer: SAETrainer[Any, Any], batch: Tensor, step: int, steering: L0Steering | None) -> str:
    """Take one step; return what went wrong, if something did."""
    try:
        trainer.maybe_reset_sparsity()
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        if steering is not None:
            steering.look(step, output.feature_acts)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        return f"step {step}: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    if step % _CHECK_EVERY == 0 and not output.loss.isfinite():
        return f"step {step}: the loss is {output.loss.item()}"
    return ""
