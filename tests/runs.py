"""Runs of a few steps on the bundled language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, MultiSAETrainingRunnerConfig, TrainingSAEConfig
from sae_lens.registry import get_sae_training_class

from sae_lens_afa import TopAFATrainingSAEConfig
from sae_lens_afa.architectures import ARCHITECTURES

HOOK = "blocks.1.hook_resid_pre"
OURS = tuple(entry.name for entry in ARCHITECTURES)
SAELENS = ("standard", "topk", "batchtopk", "jumprelu", "gated", "matching_pursuit", "matryoshka_batchtopk")
# What has to come to pass within a dozen steps: latents die, are put elsewhere, laws are fitted, phases begin.
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 8},
    "batchtopk": {"k": 7.5},
    "matryoshka_batchtopk": {"k": 8, "matryoshka_widths": [64, 256]},
    "matching_pursuit": {"max_iterations": 4},
    "mutual_choice": {"k": 8, "density_lr": 0.25},
    "feature_choice": {"k": 8, "density_lr": 0.25, "feature_choice_start_step": 5},
    "afa_threshold": {"reseed_steps": 3},
    "afa_pursuit": {"reseed_steps": 3, "growth_steps": 8},
    "top_afa": {"sparsity_coefficient": 0.1, "normalize_activations": "none"},
}


def sae_config(architecture: str, **overrides: Any) -> TrainingSAEConfig:
    """A small SAE of any architecture, for the hook of these runs."""
    settings = {**SETTINGS.get(architecture, {}), **overrides}
    return get_sae_training_class(architecture)[1](d_in=192, d_sae=256, **settings)


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
