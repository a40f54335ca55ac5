"""`InterruptibleTrainingRunner` on several ranks: the same run, faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from sae_lens import ActivationsStore
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_afa.distributed.ranks import Ranks
from sae_lens_afa.distributed.reduced_step import ReducedStep
from sae_lens_afa.distributed.restarts import folders_of_run, forget_run, note_run
from sae_lens_afa.distributed.shared_store import SharedStore
from sae_lens_afa.runner import InterruptibleTrainingRunner, TrainingInterrupted
from sae_lens_afa.training.checkpoint import DEVICES
from sae_lens_afa.training.resumable_store import ResumableStore
from sae_lens_afa.training.summary import TrainingSummary


class DistributedSAETrainingRunner(InterruptibleTrainingRunner):
    """`InterruptibleTrainingRunner` for the processes that torchrun starts; every one of them makes and runs it.

    All numbers of the configuration are those of the whole run: `train_batch_size_tokens` and
    `store_batch_size_prompts` are shared out among the ranks. So the run gives the losses and weights that one process
    gives with the same configuration, but for rounding, whatever the architecture; of an architecture that is not
    this package's or SAELens' and chooses features from a whole batch, each rank's part of the batch is that whole.

    Rank 0 alone reads the text, logs, evaluates and saves. What it logs of a step is its losses, which are those of all
    ranks, and metrics of its own share of the batch. A checkpoint can be resumed by any number of ranks, all of which
    have to see its folder.

    A signal to any rank stops all after the step. Where a rank dies, the others stop with `RankLostError`, and torchrun
    (`--max-restarts`) lets all go on from the run's newest checkpoint.

    Args:
        cfg: SAELens' configuration; "cuda" is a GPU for each process of a machine.
        override_dataset, override_model, override_sae, overwrite, keep_checkpoints: As in
            `InterruptibleTrainingRunner`.

    Raises:
        ValueError: a batch that cannot be shared out, or a setting that does not go with several ranks.

    Example:
        >>> from sae_lens_afa.distributed import DistributedSAETrainingRunner
        >>> import sae_lens_afa as afa
        >>> issubclass(DistributedSAETrainingRunner, afa.runner.InterruptibleTrainingRunner)
        True
    """

    _step: ReducedStep | None = None

    @override
    def meet(self, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        self.ranks = Ranks(str(cfg.device))
        check_shares(cfg, self.ranks.size)
        for field in DEVICES:
            if torch.device(str(getattr(cfg, field))).type == "cuda":
                setattr(cfg, field, str(self.ranks.device))
        if not self.ranks.is_first:
            cfg.logger.log_to_wandb = False
        with self.ranks.losses_said(lambda: "nothing was begun"):
            # Of its own, each process makes up another folder.
            cfg.checkpoint_path, cfg.resume_from_checkpoint = self.ranks.agreed(folders_of_run(cfg))

    @override
    def resumable(self, store: ActivationsStore) -> ResumableStore:
        shared = SharedStore.of(store)
        shared.ranks = self.ranks
        return shared

    @override
    def prepare(self, trainer: SAETrainer[Any, Any]) -> None:
        for tensor in (*self.sae.parameters(), *self.sae.buffers()):
            tensor.data.copy_(self.ranks.from_first(tensor.data))
        self._step = ReducedStep(trainer, self.ranks)
        if trainer.evaluator is not None:
            trainer.evaluator = _without_random_numbers(trainer.evaluator, self.ranks.device)

    @override
    def stops(self, asked: bool) -> bool:
        return self.ranks.any_of(asked)

    @property
    @override
    def writes(self) -> bool:
        return self.ranks.is_first

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train on all ranks, save on one, and return the SAE on each."""
        with self.ranks.losses_said(self._left):
            self.ranks.wait()  # before anything is written into folders that another still looks at
            if self.writes:
                note_run(self.cfg)
            try:
                sae = super().run()
            except TrainingInterrupted:
                self._forget()
                raise
            self._forget()
            self.ranks.wait()  # a rank that ended while rank 0 still saves would look as if it had died
        return sae

    def _left(self) -> str:
        """Return from where a run whose ranks were lost can go on."""
        checkpoint = self._watch.checkpoint if self._watch else None
        if checkpoint is None:
            return "there is no checkpoint yet"
        return (
            f"the last checkpoint is {checkpoint}: go on with --resume-from-checkpoint, or let torchrun do so with"
            " --max-restarts"
        )

    def _forget(self) -> None:
        """Leave nothing behind by which a restart or a step of the SAE's owner would ask for the other ranks."""
        if self.writes:
            forget_run(self.cfg)
        if self._step is not None:
            self._step.close()

    @override
    def summary(self) -> TrainingSummary:
        with cast(SharedStore, self._store).alone():
            return super().summary()


def _without_random_numbers(
    evaluator: Callable[..., dict[str, Any]], device: torch.device
) -> Callable[..., dict[str, Any]]:
    """Return an evaluator that leaves the random numbers alone, which all ranks draw alike."""
    devices = [device] if device.type == "cuda" else []

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.random.fork_rng(devices):
            return evaluator(*args, **kwargs)

    return evaluate


def check_shares(cfg: LanguageModelSAERunnerConfig[Any], n_ranks: int) -> None:
    """Raise ValueError unless the run's work can be shared out among so many ranks."""
    batch, prompts = cfg.train_batch_size_tokens, cfg.store_batch_size_prompts
    if batch % n_ranks != 0:
        raise ValueError(
            f"train_batch_size_tokens is {batch}, which {n_ranks} ranks cannot share equally: make it"
            f" {max(1, batch // n_ranks) * n_ranks}, or any other multiple of {n_ranks}."
        )
    if cfg.use_cached_activations and prompts % n_ranks != 0:
        raise ValueError(
            f"store_batch_size_prompts is {prompts}: with cached activations it must be a multiple of the {n_ranks}"
            " ranks."
        )
    if n_ranks > 1 and cfg.prefetch_llm_batches:
        raise ValueError(
            "prefetch_llm_batches does not go with several ranks: what a second thread asks of the other ranks would"
            " come in no fixed order."
        )
