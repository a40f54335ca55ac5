"""SAELens' language-model runner made safe: checks before the work starts, whole checkpoints, nothing overwritten."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Generator, Iterator, Sized
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset, DatasetDict
from sae_lens import ActivationsStore
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import override

from sae_lens_afa._support import expected_messages_off, warn
from sae_lens_afa.files import SAE_CFG_FILENAME, write_folder
from sae_lens_afa.loading.models import check_context, check_hook, load_language_model
from sae_lens_afa.loading.names import first_line
from sae_lens_afa.loading.text import checked_data, load_text_dataset
from sae_lens_afa.training.checks import (
    check_checkpoint,
    check_disk_space,
    check_run,
    check_same_sae,
    config_from_checkpoint,
    warn_of_settings,
)
from sae_lens_afa.training.summary import TrainingSummary, mean_l0, summarise
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
# Of a k that the saved threshold is to give: beyond these shares of it a warning says so.
_LOW, _HIGH = 0.5, 2.0


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
    """`LanguageModelSAETrainingRunner` that says before the work what is wrong, and whose interruption loses nothing.

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
    `TrainingInterrupted` says where it is. A second signal stops at once. The mixing buffer and the random state are
    not part of SAELens' checkpoints: a resumed run sees other batches of the same text than an uninterrupted one.

    A loss or weight that is not finite stops the run with `TrainingDivergedError`; checkpoints before it are kept.

    Args:
        cfg: SAELens' configuration.
        override_dataset, override_model, override_sae: In place of what `cfg` names.
        overwrite: Replace the SAE in `output_path`.

    Raises:
        ValueError, OSError: as said above; one line that names the field and says what to do.
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
    ) -> None:
        for field in _PATHS:
            if isinstance(path := getattr(cfg, field), Path):  # which its JSON could not hold
                setattr(cfg, field, str(path))
        check_run(cfg, overwrite=overwrite, has_dataset=override_dataset is not None)
        warn_of_settings(cfg)
        own = (override_dataset, override_model) != (None, None)
        if override_sae is None and cfg.from_pretrained_path is None:
            torch.manual_seed(cfg.seed)
            override_sae = TrainingSAE.from_dict(TrainingSAEConfig.from_dict(cfg.get_training_sae_cfg_dict()).to_dict())
        if override_sae is not None:
            check_same_sae(cfg.sae, override_sae)
            check_disk_space(cfg, override_sae)
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
        self.sae.cfg.metadata.package_versions = {name: version(name) for name in _PACKAGES}
        if isinstance(override_dataset, Sized):
            _check_length(self.activations_store, cfg.dataset_path)
        self._watch: TrainingWatch | None = None
        self._seconds = 0.0

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, save, and return the SAE."""
        started = time.monotonic()
        torch.manual_seed(self.cfg.seed)
        sae = super().run()
        self._seconds = time.monotonic() - started
        self._warn_of_a_missed_k()
        return sae

    def summary(self) -> TrainingSummary:
        """What came out, measured on the next tokens of the run's stream; after `run`.

        Raises:
            RuntimeError: `run` has not come to its end.
            TypeError: an architecture that AFA does not judge.
        """
        if self._watch is None or self._seconds == 0.0:
            raise RuntimeError("summary() says what came out of run(): call it after that.")
        output = None if self.cfg.output_path is None else Path(self.cfg.output_path)
        stream = cast("Iterator[Tensor]", self.activations_store)
        return summarise(self._watch.trainer, self.sae, stream, output, self._seconds)

    def _warn_of_a_missed_k(self) -> None:
        """Where a batch shares out its features, the threshold that is saved may not give as many."""
        if not isinstance(self.sae, BatchTopKTrainingSAE) or self._watch is None or self._watch.last_batch is None:
            return
        k, l0 = self.sae.cfg.k, mean_l0(self.sae, self._watch.last_batch)
        if not _LOW * k < l0 < _HIGH * k:
            warn(
                f"{self.sae.cfg.architecture()} was trained for k = {k:g} active features per token, but with the"
                f" threshold that it is saved with it has {l0:.1f}: train for more steps.",
            )

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[TrainingSAE[TrainingSAEConfig], TrainingSAEConfig]
    ) -> TrainingSAE[Any]:
        # SAELens starts a resumed run with all thresholds pending, and would write each past one again at once.
        done = trainer.n_training_samples
        trainer.checkpoint_thresholds = [n for n in trainer.checkpoint_thresholds if n >= done]
        if done:  # not the permutations once more that the run began with
            torch.manual_seed(self.cfg.seed + done)
        self._watch = TrainingWatch(trainer, f"{self.sae.cfg.architecture()} {self.sae.cfg.d_sae}")
        if self.cfg.resume_from_checkpoint is not None:
            self._watch.checkpoint = Path(self.cfg.resume_from_checkpoint)
        with _stop_request() as stop:
            # The trainer asks this at the start of every step, before it takes a batch: the one place in its loop
            # where the last step is complete and the next has not begun.
            at_step_start = trainer.maybe_reset_sparsity

            def stop_if_requested() -> dict[str, Any]:
                if stop:
                    raise TrainingInterrupted(self._save_whole_checkpoint(trainer))
                return at_step_start()

            trainer.maybe_reset_sparsity = stop_if_requested
            sae = trainer.fit()
        self._watch.check()
        return sae

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

        try:
            _save(Path(output_path), write)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise OSError(f"{output_path} cannot be written ({first_line(error)}); {self._rescue(write)}") from error

    def _rescue(self, write: Callable[[Path], None]) -> str:
        """Save what was trained wherever it can be, and say where."""
        places = [] if self.cfg.checkpoint_path is None else [Path(self.cfg.checkpoint_path) / "rescued"]
        for place in (*places, Path(tempfile.gettempdir()) / f"sae-lens-afa-rescued-{os.getpid()}"):
            try:
                write_folder(place, write)
            except (OSError, SafetensorError, RuntimeError):
                continue
            return f"the trained SAE was saved in {place} instead: move it from there."
        kept = self._watch.checkpoint if self._watch else None
        return f"nor any other place; the last checkpoint is {kept}." if kept else "nor any other place: it is lost."

    def _save_whole_checkpoint(self, trainer: SAETrainer[Any, Any]) -> Path | None:
        if self.cfg.checkpoint_path is None:
            return None
        whole = Path(self.cfg.checkpoint_path) / str(trainer.n_training_samples)
        if not whole.exists():  # as a regular checkpoint of this very step does
            trainer.save_checkpoint(checkpoint_name=whole.name)
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


def _save(output: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `output` and move it into place.

    An SAE that is there is replaced as a whole. In a folder with other content the files are put beside it.
    """
    if not output.is_dir() or (output / SAE_CFG_FILENAME).is_file() or not any(output.iterdir()):
        write_folder(output, write)
        return
    partial = output.resolve().with_name(f".{output.resolve().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        for file in partial.iterdir():
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_length(store: ActivationsStore, name: str) -> None:
    """Raise ValueError unless the text fills one context."""
    read = store.n_dataset_processed
    first = next(store._iterate_tokenized_sequences(), None)  # pyright: ignore[reportPrivateUsage]  (what it will read)
    store.n_dataset_processed = read
    if first is None:
        raise ValueError(
            f"the text of dataset_path {name} is shorter than one context of context_size = {store.context_size}"
            " tokens: give more text, or a smaller context_size."
        )
