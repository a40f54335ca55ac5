"""Sizes of the ground-truth benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from sae_lens_afa.experiments.arms import Arm
from sae_lens_afa.experiments.training import Training

# The paper's space: each sample standardised.
_STANDARDISED = {"normalize_activations": "layer_norm"}


@dataclass(frozen=True)
class Preset:
    """See `GroundTruthSweep`."""

    worlds: tuple[str, ...]
    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    test_tokens: int


def _arms(*, dense: bool, phase: int) -> tuple[Arm, ...]:
    """The grids; `phase` is the step at which Feature Choice, Mutual Choice until then, fits its Zipf law, and at which
    the threshold has risen."""
    zipf = {"prior": "zipf", "feature_choice_start_step": phase}
    return (
        Arm("standard", "l1_coefficient", (0.03, 0.1, 0.3, 1.0) if dense else (0.1,)),
        Arm("topk", "k", (2, 3, 4, 6, 8) if dense else (3, 6)),
        Arm("batchtopk", "k", (3, 4, 6, 8) if dense else (3,)),
        Arm("jumprelu", "l0_coefficient", (0.01, 0.03, 0.1, 0.3, 1.0) if dense else (0.1,)),
        Arm("mutual_choice", "k", (3, 6) if dense else (3,)),
        Arm("feature_choice", "k", (3, 6) if dense else (3,)),
        Arm("feature_choice", "k", (3, 6) if dense else (3,), zipf, "feature_choice, zipf"),
        Arm(
            "afa_threshold",
            "threshold_scale",
            (0.7, 0.85, 1.0) if dense else (0.85,),
            {"threshold_warm_up_steps": phase, **_STANDARDISED},
        ),
        Arm("top_afa", "afa_coefficient", (1 / 128, 1 / 32, 1 / 8) if dense else (1 / 32,), _STANDARDISED),
        Arm("top_afa", "target_ratio", (0.5, 0.7, 0.85) if dense else (0.7,), _STANDARDISED, "top_afa, lower target"),
        Arm("top_afa", "afa_coefficient", (1 / 32,), {"normalize_activations": "none"}, "top_afa, raw"),
    )


PRESETS = {
    "quick": Preset(
        worlds=("zipf-4x",),
        arms=_arms(dense=False, phase=400),
        training=Training(
            steps=1000, batch_size=256, lr=2e-3, dead_feature_window=100, lr_warm_up_steps=50, lr_decay_steps=300
        ),
        seeds=(0, 1, 2),
        test_tokens=16_384,
    ),
    "full": Preset(
        worlds=("zipf-2x", "zipf-4x", "zipf-8x", "correlated", "hierarchical"),
        arms=_arms(dense=True, phase=1000),
        training=Training(
            steps=2500, batch_size=256, lr=1e-3, dead_feature_window=125, lr_warm_up_steps=100, lr_decay_steps=600
        ),
        seeds=(0, 1, 2),
        test_tokens=32_768,
    ),
    "tiny": Preset(
        worlds=("tiny",),
        arms=(Arm("topk", "k", (2, 3)), Arm("top_afa", "afa_coefficient", (1 / 32,), _STANDARDISED)),
        training=Training(steps=20, batch_size=32, lr=1e-2, dead_feature_window=5),
        seeds=(0, 1),
        test_tokens=256,
    ),
}  # fmt: skip
