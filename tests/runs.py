"""Runs of a few steps on the bundled language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, MultiSAETrainingRunnerConfig, TrainingSAEConfig

from sae_lens_afa import TopAFATrainingSAEConfig

HOOK = "blocks.1.hook_resid_pre"


def runner_config(tmp_path: Path, *, steps: int = 6, sae: TrainingSAEConfig | dict | None = None, **overrides):
    """A run of a few steps; `sae` is a config or fields of top_afa's, `overrides` are fields of SAELens' config."""
    settings = {
        **_settings(tmp_path, steps),
        "sae": sae
        if isinstance(sae, TrainingSAEConfig)
        else TopAFATrainingSAEConfig(**{"d_in": 192, "d_sae": 256, **(sae or {})}),
        "hook_name": HOOK,
        "is_dataset_tokenized": False,
        "n_batches_for_norm_estimate": 2,
        "dead_feature_window": 2,
        "n_eval_batches": 1,
        "verbose": False,
        **overrides,
    }
    return LanguageModelSAERunnerConfig(**settings)


def multi_runner_config(tmp_path: Path, saes: dict[str, TrainingSAEConfig], *, steps: int = 6):
    """A run of a few steps for several SAEs on one forward, with one checkpoint on the way."""
    return MultiSAETrainingRunnerConfig(saes=saes, hook_names=HOOK, n_checkpoints=1, **_settings(tmp_path, steps))


def _settings(tmp_path: Path, steps: int) -> dict[str, Any]:
    return {
        "model_name": "kjv_gpt2",
        "streaming": False,
        "context_size": 32,
        "training_tokens": steps * 128,
        "train_batch_size_tokens": 128,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": str(tmp_path / "checkpoints"),
        "output_path": str(tmp_path / "out"),
    }
