"""SAELens' language-model runner, made safe to interrupt: whole checkpoints, and checks before the work starts."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import signal
import sys
import types
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_afa.gpt2_folder import load_gpt2_folder

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

__all__ = [
    "InterruptibleTrainingRunner",
    "TrainingInterrupted",
    "check_checkpoint",
    "check_hook",
    "config_from_checkpoint",
]

_CHECKPOINT_FILES = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
)
# Config fields that may differ between a checkpoint and the run that continues it.
_FREE_FIELDS = {"device", "metadata"}


# Noted in the SAE's metadata.
_PACKAGES = ("sae-lens-afa", "sae-lens", "transformer-lens", "torch")


class TrainingInterrupted(InterruptedException):
    """Training stopped on SIGINT or SIGTERM after a whole step; also the exception of SAELens' own runner.

    Attributes:
        checkpoint: The checkpoint from which the run can be resumed; None if the run keeps no checkpoints.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        saved = f"checkpoint saved in {checkpoint}" if checkpoint else "no checkpoint saved (checkpoint_path is None)"
        super().__init__(f"training interrupted, {saved}")


class InterruptibleTrainingRunner(LanguageModelSAETrainingRunner):
    """`LanguageModelSAETrainingRunner` whose interruption loses nothing.

    On SIGINT or SIGTERM the step in progress is finished, a whole checkpoint is written (weights, optimizer,
    schedulers, statistics, position in the data; SAELens' own handler keeps only the last of these), and
    `TrainingInterrupted` says where it is. A second signal stops at once.

    What can be known to be wrong is said before training starts: a checkpoint (`resume_from_checkpoint`,
    `from_pretrained_path`) that is incomplete or of another configuration, a hook that the model does not have,
    a `d_in` that is not the hook's width. `model_name` may also be a folder with a model of GPT-2's architecture
    (see `load_gpt2_folder`).

    The mixing buffer and the random state are not part of SAELens' checkpoints: a resumed run sees other batches
    of the same text than an uninterrupted one.
    """

    @override
    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        if cfg.resume_from_checkpoint is not None:
            check_checkpoint(cfg.resume_from_checkpoint, cfg.sae)
        if cfg.from_pretrained_path is not None:
            _check_files(
                Path(cfg.from_pretrained_path), (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME), "from_pretrained_path"
            )
        if override_model is None and cfg.model_class_name == "HookedTransformer" and Path(cfg.model_name).is_dir():
            override_model = load_gpt2_folder(cfg.model_name, cfg.llm_device or cfg.device)
        super().__init__(cfg, override_dataset, override_model, override_sae)
        self.sae.cfg.metadata.package_versions = {name: version(name) for name in _PACKAGES}
        if not cfg.use_cached_activations:
            check_hook(self.model, cfg.hook_name, cfg.sae.d_in, cfg.hook_head_index)

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[TrainingSAE[TrainingSAEConfig], TrainingSAEConfig]
    ) -> TrainingSAE[Any]:
        # SAELens starts a resumed run with all thresholds pending, and would write each past one again at once.
        done = trainer.n_training_samples
        trainer.checkpoint_thresholds = [n for n in trainer.checkpoint_thresholds if n >= done]
        with _stop_request() as stop:
            # The trainer asks this at the start of every step, before it takes a batch: the one place in its loop
            # where the last step is complete and the next has not begun.
            at_step_start = trainer.maybe_reset_sparsity

            def stop_if_requested() -> dict[str, Any]:
                if stop:
                    raise TrainingInterrupted(self._save_whole_checkpoint(trainer))
                return at_step_start()

            trainer.maybe_reset_sparsity = stop_if_requested
            return trainer.fit()

    @override
    def save_final_sae(
        self, sae: TrainingSAE[Any], output_path: str, log_feature_sparsity: torch.Tensor | None = None
    ) -> None:
        """Write the inference SAE beside `output_path` first, then move it into place."""
        final = Path(output_path)
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        super().save_final_sae(sae, str(partial), log_feature_sparsity)
        final.mkdir(parents=True, exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, final / file.name)
        partial.rmdir()

    def _save_whole_checkpoint(self, trainer: SAETrainer[Any, Any]) -> Path | None:
        if self.cfg.checkpoint_path is None:
            return None
        folder = Path(self.cfg.checkpoint_path)
        partial, whole = folder / f".{trainer.n_training_samples}.partial", folder / str(trainer.n_training_samples)
        if whole.exists():  # a regular checkpoint of this very step
            return whole
        trainer.save_checkpoint(checkpoint_name=partial.name, base_path=folder)
        partial.rename(whole)
        return whole


@contextmanager
def _stop_request() -> Generator[list[int]]:
    """Yield a list that is empty until SIGINT or SIGTERM arrives; a second signal acts as if nobody listened."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
        received.append(number)
        restore()
        print("\nstopping after this step (once more: at once, without a checkpoint)", file=sys.stderr, flush=True)

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


def check_hook_name(model: HookedRootModule, hook_name: str) -> None:
    """Raise ValueError, with the nearest names, unless the model has such a hook."""
    if hook_name not in model.hook_dict:
        near = difflib.get_close_matches(hook_name, list(model.hook_dict), n=3)
        raise ValueError(
            f"hook_name: the model has no hook {hook_name!r}" + (f"; did you mean {', '.join(near)}?" if near else ".")
        )


@torch.no_grad()
def check_hook(model: HookedRootModule, hook_name: str, d_in: int, head_index: int | None = None) -> None:
    """Run one token through the model and compare what it gives at the hook with the SAE's width.

    Raises:
        ValueError: the model has no such hook, or its activations are not `d_in` wide.
    """
    check_hook_name(model, hook_name)
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    # The class's own method: with compile_llm the instance's is compiled, for the batches to come.
    acts: torch.Tensor = type(model).run_with_cache(model, token, names_filter=[hook_name])[1][hook_name]
    # [batch, position, width], or [batch, position, heads, d_head] of which one head or all are taken.
    width = acts.shape[-1] if head_index is not None else acts[0, 0].numel()
    if width != d_in:
        raise ValueError(f"d_in is {d_in}, but activations at {hook_name} are {width} wide: set d_in={width}.")


def check_checkpoint(checkpoint: str | Path, sae_cfg: TrainingSAEConfig) -> None:
    """Refuse a checkpoint that this run cannot continue.

    Args:
        checkpoint: Folder of a checkpoint of SAELens' runner.
        sae_cfg: The SAE configuration of the run that is to continue it.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: its configuration is of another architecture, or differs in a field.
    """
    folder = Path(checkpoint)
    _check_files(folder, _CHECKPOINT_FILES, "resume_from_checkpoint")
    saved, current = json.loads((folder / SAE_CFG_FILENAME).read_text()), sae_cfg.to_dict()
    differing = [
        f"{field} is {saved[field]!r} there and {value!r} here"
        for field, value in current.items()
        if field in saved and field not in _FREE_FIELDS and saved[field] != value
    ]
    if differing:
        raise ValueError(f"checkpoint {folder} is of another configuration: {'; '.join(differing)}.")


def _check_files(folder: Path, names: tuple[str, ...], field: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{field}: {folder} is not a folder.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{field}: {folder} has no {', '.join(missing)}; it must be a checkpoint that the runner wrote,"
            " <checkpoint_path>/<id>/<number of tokens>."
        )


def config_from_checkpoint(checkpoint: str | Path) -> LanguageModelSAERunnerConfig[Any]:
    """The configuration of the run that wrote `checkpoint`, set to resume from it.

    Raises:
        FileNotFoundError: there is no run configuration in the folder.
    """
    path = Path(checkpoint) / RUNNER_CFG_FILENAME
    _check_files(path.parent, (RUNNER_CFG_FILENAME,), "resume_from_checkpoint")
    cfg = LanguageModelSAERunnerConfig.from_dict(json.loads(path.read_text()))
    cfg.resume_from_checkpoint = str(checkpoint)
    return cfg
