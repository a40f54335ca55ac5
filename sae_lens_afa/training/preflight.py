"""Checks of a run before its work starts; each message is one line that names the field."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import DTYPE_MAP, RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig

from sae_lens_afa._support import warn
from sae_lens_afa.files import check_output_folder, holds_something, nearest_folder, read_object
from sae_lens_afa.loading.models import check_device
from sae_lens_afa.selection._backends import backend_for
from sae_lens_afa.training.checkpoint import DEVICES, check_checkpoint, check_files
from sae_lens_afa.training.resumable_store import ResumableStore

_AT_LEAST_1 = (
    "train_batch_size_tokens", "context_size", "store_batch_size_prompts", "n_batches_in_buffer",
    "feature_sampling_window", "n_eval_batches",
)  # fmt: skip
_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
# A checkpoint holds the weights and Adam's two moments of each.
_TENSORS_OF_A_CHECKPOINT = 3


def check_run(cfg: LanguageModelSAERunnerConfig[Any], *, overwrite: bool, has_dataset: bool) -> None:
    """Refuse a configuration with which the run cannot work.

    Args:
        cfg: The runner's configuration.
        overwrite: Whether an SAE in `output_path` may be replaced.
        has_dataset: A data set is given beside the configuration.

    Raises:
        ValueError: a size, rate, dtype or device that will not do.
        OSError: a folder that cannot be written, that holds something, or that is missing.
    """
    for field in DEVICES:
        check_device(str(getattr(cfg, field)), what=field)
    for field, dtype in (("dtype", cfg.dtype), ("sae.dtype", cfg.sae.dtype)):
        if dtype not in DTYPE_MAP:
            raise ValueError(f"{field} must be one of {', '.join(map(str, DTYPE_MAP))}, got {dtype!r}.")
    _check_sizes(cfg)
    _check_schedule(cfg)
    if cfg.use_cached_activations and not Path(str(cfg.cached_activations_path)).is_dir():
        raise FileNotFoundError(f"cached_activations_path: {cfg.cached_activations_path} is not a folder.")
    if cfg.output_path == "":
        raise ValueError("output_path is empty: give a folder, or None to save nothing.")
    if cfg.output_path is not None:
        output = Path(cfg.output_path)
        replaceable = overwrite or not holds_something(output) or _is_of_this_run(output, cfg)
        check_output_folder(output, overwrite=replaceable)
    if cfg.checkpoint_path is not None:
        check_output_folder(Path(cfg.checkpoint_path), overwrite=True, what="checkpoint_path")
    if cfg.resume_from_checkpoint is not None:
        as_set = copy.deepcopy(cfg.sae)  # as the checkpoint's run had set it
        set_for_run(as_set, cfg.total_training_steps)
        check_checkpoint(cfg.resume_from_checkpoint, as_set)
    if cfg.from_pretrained_path is not None:
        check_files(Path(cfg.from_pretrained_path), (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME), "from_pretrained_path")
    if cfg.dataset_path == "" and not has_dataset and not cfg.use_cached_activations:
        raise ValueError("dataset_path is not given: name a data set on the Hub, a file or a folder.")


def _is_of_this_run(output: Path, cfg: LanguageModelSAERunnerConfig[Any]) -> bool:
    """Return whether a run that is resumed wrote the SAE in `output` itself: it kept the same folder of checkpoints."""
    settings = output / RUNNER_CFG_FILENAME
    if cfg.resume_from_checkpoint is None or not settings.is_file():
        return False
    wrote = read_object(settings, str(output)).get("checkpoint_path")
    return wrote is not None and wrote == cfg.checkpoint_path


def _check_sizes(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Refuse numbers of tokens, prompts and batches that do not go together."""
    batch, context = cfg.train_batch_size_tokens, cfg.context_size
    for field in _AT_LEAST_1:
        if getattr(cfg, field) < 1:
            raise ValueError(f"{field} must be at least 1, got {getattr(cfg, field)}.")
    if context == 1 and cfg.prepend_bos and not cfg.use_cached_activations:
        raise ValueError(
            "context_size is 1, and with prepend_bos that one token is always the beginning of a text: raise"
            " context_size, or set prepend_bos to False."
        )
    if cfg.n_checkpoints < 0:
        raise ValueError(f"n_checkpoints must not be negative, got {cfg.n_checkpoints}.")
    if not 0 <= cfg.seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {cfg.seed}.")
    if cfg.training_tokens < batch:
        raise ValueError(
            f"training_tokens is {cfg.training_tokens}, less than one batch of train_batch_size_tokens = {batch}:"
            " raise the one or lower the other."
        )
    kept = _positions(cfg)
    buffer = cfg.n_batches_in_buffer * kept
    if buffer < batch:
        raise ValueError(
            f"the mixing buffer of n_batches_in_buffer * context_size = {cfg.n_batches_in_buffer} * {kept} = {buffer}"
            f" tokens is smaller than a batch of train_batch_size_tokens = {batch}: set n_batches_in_buffer to at least"
            f" {math.ceil(batch / kept)}, better {2 * math.ceil(batch / kept)}."
        )


def _check_schedule(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Refuse learning rates with which nothing would be learnt."""
    steps = cfg.total_training_steps
    if not (cfg.lr > 0 and math.isfinite(cfg.lr)):
        raise ValueError(f"lr must be a number above 0, got {cfg.lr}: nothing would be learnt.")
    for field in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(cfg, field) < 1:
            raise ValueError(f"{field} must be at least 0 and below 1, got {getattr(cfg, field)}.")
    if cfg.lr_scheduler_name.lower() not in _SCHEDULERS:
        raise ValueError(f"lr_scheduler_name must be one of {', '.join(_SCHEDULERS)}, got {cfg.lr_scheduler_name!r}.")
    if cfg.lr_warm_up_steps + cfg.lr_decay_steps > steps:
        raise ValueError(
            f"lr_warm_up_steps + lr_decay_steps = {cfg.lr_warm_up_steps} + {cfg.lr_decay_steps} are more than the"
            f" run's {steps} steps (training_tokens / train_batch_size_tokens)."
        )


def check_same_sae(cfg: TrainingSAEConfig, sae: TrainingSAE[Any]) -> None:
    """Raise ValueError unless an SAE that is given is the one that the configuration describes."""
    for field in ("architecture", "d_in", "d_sae"):
        given, wanted = (value() if callable(value := getattr(c, field)) else value for c in (sae.cfg, cfg))
        if given != wanted:
            raise ValueError(f"override_sae has {field} {given!r}, but cfg.sae has {wanted!r}: they must be the same.")


def set_for_run(cfg: TrainingSAEConfig, steps: int) -> None:
    """Let a configuration set what it leaves to the length of a run, if it has a method of this name."""
    if (set_it := getattr(cfg, "set_for_run", None)) is not None:
        set_it(steps)


def warn_of_settings(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Warn of what works and is hardly meant: phases longer than the run, and a pursuit without its compiled kernel."""
    steps = cfg.total_training_steps
    device = torch.device(cfg.device)
    if cfg.sae.architecture() == "afa_pursuit" and device.type == "cpu" and backend_for(device) != "numba":
        warn(
            "afa_pursuit trains about ten times slower on a CPU without numba: install numba (pip install numba, or"
            " this package with its extra [fast]), and leave SAE_LENS_AFA_BACKEND unset.",
        )
    for field in dataclasses.fields(cfg.sae):
        value = getattr(cfg.sae, field.name)
        if field.name.endswith("warm_up_steps") and isinstance(value, int) and value >= steps:
            warn(
                f"{field.name} is {value}, but the run has {steps} steps: it ends before the warm-up does, and the SAE"
                f" is saved with settings that it was not trained for. Set {field.name} to {steps // 2} or less.",
            )
        if field.name == "growth_steps" and isinstance(value, int) and value >= steps:
            warn(
                f"growth_steps is {value}, but the run has {steps} steps: it ends before the dictionary has all of its"
                f" latents, and the rest stay zero. Set growth_steps to {steps * 2 // 5} or so.",
            )
        if field.name == "feature_choice_start_step" and value >= steps:
            warn(
                f"{field.name} is {value}, but the run has {steps} steps: Feature Choice never starts, and the SAE"
                " stays one of Mutual Choice.",
            )


def check_kept(keep_checkpoints: int | None) -> None:
    """Raise ValueError unless at least one checkpoint is to stay."""
    if keep_checkpoints is not None and keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints must be at least 1, or None to keep all, got {keep_checkpoints}.")


def check_disk_space(
    cfg: LanguageModelSAERunnerConfig[Any], sae: TrainingSAE[Any], keep_checkpoints: int | None = None
) -> None:
    """Raise OSError unless what the run will write fits on the disk."""
    weights = sum(p.numel() * p.element_size() for p in sae.parameters())
    n_checkpoints = cfg.n_checkpoints + cfg.save_final_checkpoint
    if keep_checkpoints is not None:  # an old one goes when the new one is there
        n_checkpoints = min(n_checkpoints, keep_checkpoints + 1)
    checkpoint = _TENSORS_OF_A_CHECKPOINT * weights + _buffer_bytes(cfg)
    wanted = [(cfg.output_path, weights), (cfg.checkpoint_path, n_checkpoints * checkpoint)]
    needed: dict[int, tuple[Path, int]] = {}
    for name, size in wanted:
        if name is not None and size:
            folder = nearest_folder(Path(name))
            disk = os.stat(folder).st_dev
            needed[disk] = (folder, size + needed.get(disk, (folder, 0))[1])
    for folder, size in needed.values():
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(
                f"{_megabytes(size)} are needed in {folder} for the SAE and {n_checkpoints} checkpoints, but only"
                f" {_megabytes(free)} are free: free some, or set output_path and checkpoint_path to another disk."
            )


def _buffer_bytes(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """Return the size of a mixing buffer that has just been filled, of float32 activations."""
    return (cfg.n_batches_in_buffer + cfg.store_batch_size_prompts) * _positions(cfg) * cfg.sae.d_in * 4


def _positions(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """Return of how many tokens of a context the activations are kept."""
    return len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def check_length(store: ResumableStore, name: str) -> None:
    """Raise ValueError unless the text of `dataset_path` fills one context."""
    if not store.has_a_context():
        raise ValueError(
            f"the text of dataset_path {name} is shorter than one context of context_size = {store.context_size}"
            " tokens: give more text, or a smaller context_size."
        )
