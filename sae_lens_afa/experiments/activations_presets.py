"""Sizes of the comparison on real activations."""

from __future__ import annotations

from dataclasses import dataclass

from sae_lens_afa.experiments.arms import Arm
from sae_lens_afa.experiments.training import Training


@dataclass(frozen=True)
class Preset:
    """See `ActivationsSweep` and `LanguageModelSweep`; the last three are for the bundled model."""

    arms: tuple[Arm, ...]
    training: Training
    seeds: tuple[int, ...]
    context_size: int
    test_tokens: int
    ce_tokens: int


def _arms(*, dense: bool, phase: int) -> tuple[Arm, ...]:
    """The grids; `phase` is the step at which Feature Choice, Mutual Choice until then, fits its Zipf law, and at which
    the threshold has risen."""
    zipf = {"prior": "zipf", "feature_choice_start_step": phase}
    ks = (4, 8, 16, 32, 64) if dense else (8, 32)
    return (
        Arm("standard", "l1_coefficient", (0.3, 1.0, 3.0, 10.0) if dense else (1.0, 3.0)),
        Arm("topk", "k", ks),
        Arm("batchtopk", "k", ks),
        Arm("jumprelu", "l0_coefficient", (0.3, 1.0, 3.0, 10.0) if dense else (1.0,)),
        Arm("mutual_choice", "k", (8, 16, 32) if dense else (8, 32)),
        Arm("feature_choice", "k", (8, 32) if dense else (32,)),
        Arm("feature_choice", "k", (8, 32) if dense else (32,), zipf, "feature_choice, zipf"),
        Arm(
            "afa_threshold",
            "threshold_scale",
            (0.5, 0.7, 0.85, 1.0) if dense else (0.85,),
            {"threshold_warm_up_steps": phase},
        ),
        Arm("top_afa", "afa_coefficient", (1 / 128, 1 / 64, 1 / 32, 1 / 16) if dense else (1 / 128, 1 / 32)),
        Arm("top_afa", "target_ratio", (0.5, 0.6, 0.7, 0.85) if dense else (0.7,), {}, "top_afa, lower target"),
    )


PRESETS = {
    "quick": Preset(
        arms=_arms(dense=False, phase=120),
        training=Training(
            steps=300, batch_size=256, lr=1e-3, dead_feature_window=20, lr_warm_up_steps=15, lr_decay_steps=60
        ),
        seeds=(0, 1, 2),
        context_size=128,
        test_tokens=16_384,
        ce_tokens=4096,
    ),
    "full": Preset(
        arms=_arms(dense=True, phase=480),
        training=Training(
            steps=1200, batch_size=512, lr=1e-3, dead_feature_window=60, lr_warm_up_steps=60, lr_decay_steps=300
        ),
        seeds=(0, 1, 2),
        context_size=128,
        test_tokens=32_768,
        ce_tokens=16_384,
    ),
    "tiny": Preset(
        arms=(Arm("topk", "k", (4,)), Arm("mutual_choice", "k", (4,))),
        training=Training(steps=6, batch_size=64, lr=1e-3, dead_feature_window=2),
        seeds=(0, 1),
        context_size=32,
        test_tokens=256,
        ce_tokens=64,
    ),
}
