"""A watch over training: a bar that moves every step, and an end to losses and weights that are not finite."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_lens_afa.files import write_folder
from sae_lens_afa.training.checkpoint import checkpoints_in

# Steps between looks at the loss on an accelerator, each of which has to wait for it. A CPU has it at once.
_EVERY = 100
# Seconds between the losses that the bar shows.
_PAUSE = 1.0


class TrainingDivergedError(ValueError):
    """End of a training whose loss or weights are no longer finite; nothing was saved of them.

    Attributes:
        checkpoint: The last checkpoint before that; None if there is none.

    Example:
        >>> from sae_lens_afa.runner import TrainingDivergedError
        >>> try:
        ...     raise TrainingDivergedError("the loss is", 7, None, "Lower lr (it is 1).")  # as `run` does
        ... except TrainingDivergedError as error:
        ...     print(error.checkpoint)
        None
    """

    def __init__(self, what: str, step: int, checkpoint: Path | None, cause: str) -> None:
        self.checkpoint = checkpoint
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint before it"
        super().__init__(f"training diverged: {what} not finite at step {step}, so nothing is saved; {kept}. {cause}")


class TrainingWatch:
    """Watches one trainer, through attributes of that object.

    Args:
        trainer: SAELens' trainer, before `fit`.
        name: What the bar calls the SAE.
        keep_checkpoints: So many of the newest checkpoints stay; None: all.
        writes: Whether this process writes checkpoints, or another of the run does.

    Attributes:
        trainer: The trainer.
        checkpoint: The last checkpoint that was written; None before the first.
        last_batch: Raw activations of the last step.
    """

    def __init__(
        self, trainer: SAETrainer[Any, Any], name: str, *, keep_checkpoints: int | None = None, writes: bool = True
    ) -> None:
        self.trainer, self._name, self._keep, self._writes = trainer, name, keep_checkpoints, writes
        self._steps_done = trainer.n_training_steps
        self._finite: Tensor | None = None
        self._last_shown = 0.0
        self.checkpoint: Path | None = None
        self.last_batch: Tensor | None = None
        self._step, self._save = trainer.step, trainer.save_checkpoint
        trainer.step = self.step
        trainer.save_checkpoint = self.save_checkpoint
        trainer._update_pbar = self.update_bar  # pyright: ignore[reportPrivateUsage]  (its own moves every 100 steps)

    def step(self, batch: Tensor) -> TrainStepOutput:
        """Take the trainer's step, and look at its loss."""
        self.last_batch = batch
        output = self._step(batch)
        self._steps_done = self.trainer.n_training_steps + 1
        finite = output.loss.detach().isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        if finite.device.type == "cpu" or self.trainer.n_training_steps % _EVERY == 0:
            self._check_loss()
        return output

    def save_checkpoint(
        self, checkpoint_name: str, base_path: Path | str | None = None, wandb_aliases: list[str] | None = None
    ) -> None:
        """Write the trainer's checkpoint aside and move it; none where there is nothing good to keep."""
        self.check()
        base = base_path if base_path is not None else self.trainer.cfg.checkpoint_path
        if base is None:
            self._save(checkpoint_name, base_path, wandb_aliases)
            return
        whole = Path(base) / checkpoint_name
        if not self._writes:
            self.checkpoint = whole
            return
        counted, self.trainer.n_training_steps = self.trainer.n_training_steps, self._steps_done
        try:  # SAELens counts a step after the checkpoint that follows it
            write_folder(whole, lambda folder: self._save(folder.name, folder.parent, wandb_aliases))
        finally:
            self.trainer.n_training_steps = counted
        self.checkpoint = whole
        if self._keep is not None:
            for old in checkpoints_in(whole.parent)[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)

    @torch.no_grad()
    def check(self) -> None:
        """Raise TrainingDivergedError if the loss was not finite, or a weight is not."""
        self._check_loss()
        for name, weight in self.trainer.sae.named_parameters():
            if not bool(weight.isfinite().all()):
                self._diverged(f"{name} is")

    def _check_loss(self) -> None:
        """Raise TrainingDivergedError if a loss so far was not finite."""
        if self._finite is not None and not bool(self._finite):
            self._diverged("the loss is")

    def _diverged(self, what: str) -> None:
        """Raise TrainingDivergedError with the setting that is most likely the cause."""
        trainer = self.trainer
        dtype = str(trainer.sae.W_dec.dtype).removeprefix("torch.")
        cause = f"Lower lr (it is {trainer.cfg.lr:g})."
        if dtype == "float16":
            cause = "float16 overflows in training (Adam's squares of gradients): set dtype to float32 or bfloat16."
        raise TrainingDivergedError(what, trainer.n_training_steps, self.checkpoint, cause)

    def update_bar(self, step_output: TrainStepOutput, pbar: Any, update_interval: int = 1) -> None:  # noqa: ARG002
        """Move the bar by the tokens of one step; give its losses once a second, for which an accelerator waits."""
        trainer = self.trainer
        if self._last_shown == 0.0:
            pbar.set_description(self._name, refresh=False)
            pbar.unit, pbar.unit_scale = " tokens", True
        pbar.update(min(trainer.n_training_samples, pbar.total) - pbar.n)
        if time.monotonic() - self._last_shown > _PAUSE or pbar.n >= pbar.total:
            self._last_shown = time.monotonic()
            losses = {name: torch.as_tensor(value).detach() for name, value in step_output.losses.items()}
            pbar.set_postfix({name: f"{float(value):.4g}" for name, value in losses.items()})
