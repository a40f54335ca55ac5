"""Runs of a few steps on the bundled language model."""

from __future__ import annotations

from pathlib import Path

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_afa import TopAFATrainingSAEConfig

HOOK = "blocks.1.hook_resid_pre"


def runner_config(tmp_path: Path, *, steps: int = 6, sae: dict | None = None, **overrides):
    """A run of a few steps; `overrides` are fields of SAELens' config."""
    settings = {
        "sae": TopAFATrainingSAEConfig(**{"d_in": 192, "d_sae": 256, **(sae or {})}),
        "model_name": "kjv_gpt2",
        "hook_name": HOOK,
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 32,
        "training_tokens": steps * 128,
        "train_batch_size_tokens": 128,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4,
        "n_batches_for_norm_estimate": 2,
        "dead_feature_window": 2,
        "n_eval_batches": 1,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": str(tmp_path / "checkpoints"),
        "output_path": str(tmp_path / "out"),
        "verbose": False,
        **overrides,
    }
    return LanguageModelSAERunnerConfig(**settings)
