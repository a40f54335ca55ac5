"""SAELens' language-model runner made safe: checks before the work starts, whole checkpoints, nothing overwritten."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sized
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset, DatasetDict
from sae_lens import ActivationsStore
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from typing_extensions import override

from sae_lens_afa._support import expected_messages_off, warn
from sae_lens_afa.loading.models import check_context, check_hook, load_language_model
from sae_lens_afa.loading.text import checked_data, load_text_dataset
from sae_lens_afa.training.checkpoint import check_checkpoint, config_from_checkpoint, newest_checkpoint
from sae_lens_afa.training.interruption import TrainingInterrupted, stop_request
from sae_lens_afa.training.preflight import (
    check_disk_space,
    check_kept,
    check_length,
    check_run,
    check_same_sae,
    set_for_run,
    warn_of_settings,
)
from sae_lens_afa.training.resumable_store import ResumableStore
from sae_lens_afa.training.run_state import restore_randomness_and_statistics, save_run_state
from sae_lens_afa.training.saving import save_sae
from sae_lens_afa.training.summary import TrainingSummary, summarise, warn_of_a_missed_k
from sae_lens_afa.training.watch import TrainingDivergedError, TrainingWatch

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

__all__ = [
    "InterruptibleTrainingRunner",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "TrainingSummary",
    "check_checkpoint",
    "check_hook",
    "config_from_checkpoint",
]

# Noted in the SAE's metadata.
_PACKAGES = ("sae-lens-afa", "sae-lens", "transformer-lens", "torch")
_PATHS = (
    "model_name", "dataset_path", "output_path", "checkpoint_path", "resume_from_checkpoint", "from_pretrained_path",
    "cached_activations_path",
)  # fmt: skip


class InterruptibleTrainingRunner(LanguageModelSAETrainingRunner):
    """`LanguageModelSAETrainingRunner` that checks before the work, and whose interruption loses nothing.

    Before training: sizes, devices, dtypes, folders, disk space, a checkpoint that is incomplete or of another
    configuration, a hook that the model does not have or does not compute, a `d_in` that is not the hook's width, a
    context longer than the model's, text that is not there. `output_path` must be new (or empty), unless `overwrite`.

    `model_name` may be a folder (see `load_language_model`), and `dataset_path` a file or a folder (see
    `load_text_dataset`).

    `cfg.seed` decides initial weights and the mixing of tokens: on a CPU, runs of equal settings, seed and thread
    count give equal weights. On cuda, sums whose order is not fixed leave differences of rounding; and with
    `prefetch_llm_batches` a second thread draws from the same stream of random numbers.

    On SIGINT or SIGTERM the step in progress is finished, a whole checkpoint is written (weights, optimizer,
    schedulers, statistics, position in the data; SAELens' own handler keeps only the last of these), and
    `TrainingInterrupted` says where it is. A second signal stops at once. A checkpoint has the mixing buffer, the place
    in the text and the random numbers, too: on a CPU, a run that is resumed gives the weights of one that was not
    interrupted, bit for bit. From a checkpoint of SAELens' own runner it goes on with other batches.

    What a configuration of this package leaves to the length of the run is set in `cfg.sae` (`growth_steps`).

    A loss or weight that is not finite stops the run with `TrainingDivergedError`; checkpoints before it are kept.

    Args:
        cfg: SAELens' configuration.
        override_dataset, override_model, override_sae: In place of what `cfg` names.
        overwrite: Replace the SAE in `output_path`.
        keep_checkpoints: Only so many of the newest checkpoints stay; None: all.

    Raises:
        ValueError, OSError: as said above; one line that names the field and says what to do.

    Example:
        >>> from datasets import Dataset
        >>> from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
        >>> import sae_lens_afa as afa
        >>> cfg = LanguageModelSAERunnerConfig(
        ...     sae=afa.TopAFATrainingSAEConfig(d_in=192, d_sae=256),
        ...     model_name=str(afa.demo.model_folder()),
        ...     hook_name="blocks.2.hook_resid_pre",
        ...     is_dataset_tokenized=False,
        ...     streaming=False,
        ...     context_size=32,
        ...     training_tokens=512,
        ...     train_batch_size_tokens=128,
        ...     store_batch_size_prompts=4,
        ...     n_batches_in_buffer=4,
        ...     logger=LoggingConfig(log_to_wandb=False),
        ...     checkpoint_path="runs/checkpoints",
        ...     output_path="runs/sae",
        ...     verbose=False,
        ... )
        >>> text = Dataset.from_dict({"text": afa.demo.load_text().train[:2]})
        >>> runner = afa.runner.InterruptibleTrainingRunner(cfg, override_dataset=text)
        >>> sae = runner.run()
        >>> runner.summary().folder.as_posix()
        'runs/sae'
    """

    @override
    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        *,
        overwrite: bool = False,
        keep_checkpoints: int | None = None,
    ) -> None:
        self.meet(cfg)
        for field in _PATHS:
            if isinstance(path := getattr(cfg, field), Path):  # which its JSON could not hold
                setattr(cfg, field, str(path))
        if cfg.resume_from_checkpoint is not None:
            cfg.resume_from_checkpoint = str(newest_checkpoint(Path(cfg.resume_from_checkpoint)))
        check_kept(keep_checkpoints)
        check_run(cfg, overwrite=overwrite, has_dataset=override_dataset is not None)
        self._keep_checkpoints = keep_checkpoints
        set_for_run(cfg.sae, cfg.total_training_steps)
        if override_sae is not None:
            set_for_run(override_sae.cfg, cfg.total_training_steps)
        warn_of_settings(cfg)
        own = (override_dataset, override_model) != (None, None)
        if override_sae is None and cfg.from_pretrained_path is None:
            torch.manual_seed(cfg.seed)
            override_sae = TrainingSAE.from_dict(TrainingSAEConfig.from_dict(cfg.get_training_sae_cfg_dict()).to_dict())
        if override_sae is not None:
            check_same_sae(cfg.sae, override_sae)
            check_disk_space(cfg, override_sae, keep_checkpoints)
        if override_dataset is None and not cfg.use_cached_activations:
            data = load_text_dataset(cfg.dataset_path, what="dataset_path")
            override_dataset = None if isinstance(data, str) else data
        elif isinstance(override_dataset, Dataset | DatasetDict):
            override_dataset = checked_data(override_dataset, "override_dataset")
        if override_model is None:
            override_model = load_language_model(
                cfg.model_name, str(cfg.llm_device), cfg.model_class_name, cfg.model_from_pretrained_kwargs,
                hook_names=[cfg.hook_name], what="model_name",
            )  # fmt: skip
        if not cfg.use_cached_activations:
            reshaping = cfg.sae.reshape_activations
            check_hook(override_model, cfg.hook_name, cfg.sae.d_in, cfg.hook_head_index, reshaping=reshaping)
            check_context(override_model, cfg.context_size)
        # SAELens warns of a model and data that are not those of the configuration: these are.
        with nullcontext() if own else expected_messages_off():
            super().__init__(cfg, override_dataset, override_model, override_sae)
        self._store = self.resumable(self.activations_store)
        self.activations_store = self.evaluator.activations_store = self._store
        self.sae.cfg.metadata.package_versions = {name: version(name) for name in _PACKAGES}
        if isinstance(override_dataset, Sized):
            check_length(self._store, cfg.dataset_path)
        self._watch: TrainingWatch | None = None
        self._seconds = 0.0

    # ---- where a run on several ranks differs

    def meet(self, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        """Do what is due before the configuration is checked."""

    def resumable(self, store: ActivationsStore) -> ResumableStore:
        """Return a store from which the run reads, in place of SAELens' own."""
        return ResumableStore.of(store, ahead=int(self.cfg.prefetch_llm_batches), seed=self.cfg.seed)

    def prepare(self, trainer: SAETrainer[Any, Any]) -> None:
        """Do what is due before the first step, with a trainer that is new or has been resumed."""

    def stops(self, asked: bool) -> bool:
        """Return whether the run stops before the next step, by whether a signal has asked for that."""
        return asked

    @property
    def writes(self) -> bool:
        """True where checkpoints and the SAE are written."""
        return True

    # ---- the run

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, save, and return the SAE."""
        started = time.monotonic()
        torch.manual_seed(self.cfg.seed)
        if self.cfg.resume_from_checkpoint is not None:
            self._store.load_from_checkpoint(self.cfg.resume_from_checkpoint)
        sae = super().run()
        self._seconds = time.monotonic() - started
        if self._watch is not None and self._watch.last_batch is not None:
            warn_of_a_missed_k(self.sae, self._watch.last_batch)
        return sae

    def summary(self) -> TrainingSummary:
        """Return what came out of `run`, measured on the next tokens of the run's stream.

        Raises:
            RuntimeError: `run` has not come to its end.
            TypeError: an architecture that AFA does not judge.
        """
        if self._watch is None or self._seconds == 0.0:
            raise RuntimeError("summary() says what came out of run(): call it after that.")
        output = None if self.cfg.output_path is None else Path(self.cfg.output_path)
        stream = cast("Iterator[Tensor]", self.activations_store)
        return summarise(self._watch.trainer, self.sae, stream, output, self._seconds)

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[TrainingSAE[TrainingSAEConfig], TrainingSAEConfig]
    ) -> TrainingSAE[Any]:
        """Train until the end or until a signal, in place of SAELens' own handling of signals."""
        name = f"{self.sae.cfg.architecture()} {self.sae.cfg.d_sae}"
        self._watch = watch = TrainingWatch(trainer, name, keep_checkpoints=self._keep_checkpoints, writes=self.writes)
        if self.cfg.resume_from_checkpoint is not None:
            self._resume(watch, Path(self.cfg.resume_from_checkpoint))
        self.prepare(trainer)
        with stop_request() as stop:
            # The trainer asks this at the start of every step, before it takes a batch: the one place in its loop
            # where the last step is complete and the next has not begun.
            at_step_start = trainer.maybe_reset_sparsity

            def stop_if_requested() -> dict[str, Any]:
                if self.stops(bool(stop)):
                    raise TrainingInterrupted(self._save_whole_checkpoint(trainer))
                return at_step_start()

            trainer.maybe_reset_sparsity = stop_if_requested
            sae = trainer.fit()
        watch.check()
        return sae

    def _resume(self, watch: TrainingWatch, checkpoint: Path) -> None:
        """Let a trainer whose state SAELens has loaded go on as if it had not stopped."""
        watch.checkpoint = checkpoint
        trainer, done = watch.trainer, watch.trainer.n_training_samples
        # SAELens starts a resumed run with all thresholds pending, and would write each past one again at once.
        trainer.checkpoint_thresholds = [n for n in trainer.checkpoint_thresholds if n >= done]
        if not restore_randomness_and_statistics(checkpoint, self.sae):
            torch.manual_seed(self.cfg.seed + done)  # not the permutations once more that the run began with
            warn(
                f"{checkpoint} is of SAELens' own runner, which keeps neither the mixing buffer nor the random numbers:"
                " the run goes on with other batches than it would have had."
            )

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        """Write what a run goes on with beside the trainer's state; None: there is no folder."""
        super().save_checkpoint(checkpoint_path)
        if checkpoint_path is not None:
            last = None if self._watch is None else self._watch.last_batch
            save_run_state(checkpoint_path, self._store.state_after(last), self.sae)

    @override
    def save_final_sae(
        self, sae: TrainingSAE[Any], output_path: str, log_feature_sparsity: torch.Tensor | None = None
    ) -> None:
        """Write the inference SAE beside `output_path`, then move it into place; elsewhere if that fails.

        Raises:
            OSError: `output_path` cannot be written; the message says where the SAE is.
        """

        def write(folder: Path) -> None:
            super(InterruptibleTrainingRunner, self).save_final_sae(sae, str(folder), log_feature_sparsity)

        if not self.writes:
            return
        checkpoints = None if self.cfg.checkpoint_path is None else Path(self.cfg.checkpoint_path)
        last = self._watch.checkpoint if self._watch else None
        save_sae(Path(output_path), write, checkpoints=checkpoints, last_checkpoint=last)

    def _save_whole_checkpoint(self, trainer: SAETrainer[Any, Any]) -> Path | None:
        """Write a checkpoint of the last step, unless there is one, and return it; None without `checkpoint_path`."""
        if self.cfg.checkpoint_path is None:
            return None
        whole = Path(self.cfg.checkpoint_path) / str(trainer.n_training_samples)
        if not whole.exists():  # as a regular checkpoint of this very step does
            trainer.save_checkpoint(checkpoint_name=whole.name)
        return whole
