"""The list of this package's architectures. A new one is its own module in `saes` and one entry here.

Registration with SAELens, the public names, the entry points of the distribution, presets of sweeps, colours of plots,
model cards, `export` and the conformance tests read this list. It imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the classes, for type checkers and editors; at run time they are found by their names below
    from sae_lens_afa.saes.afa_pursuit_sae import *
    from sae_lens_afa.saes.afa_threshold_sae import *
    from sae_lens_afa.saes.feature_choice_sae import *
    from sae_lens_afa.saes.mutual_choice_sae import *
    from sae_lens_afa.saes.top_afa_sae import *


class Grid(NamedTuple):
    """Values of one hyperparameter that a sweep compares.

    Attributes:
        hyperparameter: A field of the architecture's training configuration.
        quick: Values in the preset "quick".
        full: Values in the preset "full".
        settings: Other fields of the configuration.
        phase: A field that is set to the step at which the sweep's first phase ends; none if empty.
        label: Name in tables and plots; the architecture's if empty.
    """

    hyperparameter: str
    quick: tuple[float, ...]
    full: tuple[float, ...]
    settings: Mapping[str, Any] = {}
    phase: str = ""
    label: str = ""


class Architecture(NamedTuple):
    """An architecture, as the rest of the package knows it without importing its module.

    Attributes:
        name: Name in SAELens' registries; its module is `sae_lens_afa.saes.<name>_sae`.
        about: What it does, in one line.
        classes: Names of its public classes: training SAE and config, then inference SAE and config if it has its own.
        color: Colour in plots.
        saved_as: Architecture of the saved inference SAE where that is another one; its own if empty.
        exportable: Whether `export_jumprelu` approximates it.
        grids: Grids by sweep ("ground-truth", "activations").
    """

    name: str
    about: str
    classes: tuple[str, ...]
    color: str
    saved_as: str = ""
    exportable: bool = False
    grids: Mapping[str, tuple[Grid, ...]] = {}

    @property
    def module(self) -> str:
        """Full name of the module that defines it."""
        return f"sae_lens_afa.saes.{self.name}_sae"


# The paper's space: each sample standardised.
_STANDARDISED = {"normalize_activations": "layer_norm"}
_ZIPF = {"prior": "zipf"}

ARCHITECTURES = (
    Architecture(
        name="top_afa",
        about="as many features per token as bring the norm of the code nearest to that of the input (no k)",
        classes=("TopAFATrainingSAE", "TopAFATrainingSAEConfig", "TopAFASAE", "TopAFASAEConfig"),
        color="#D55E00",
        exportable=True,
        grids={
            "ground-truth": (
                Grid("afa_coefficient", (1 / 32,), (1 / 128, 1 / 32, 1 / 8), _STANDARDISED),
                Grid("target_ratio", (0.7,), (0.5, 0.7, 0.85), _STANDARDISED, label="top_afa, lower target"),
                Grid("afa_coefficient", (1 / 32,), (1 / 32,), {"normalize_activations": "none"}, label="top_afa, raw"),
            ),
            "activations": (
                Grid("afa_coefficient", (1 / 128, 1 / 32), (1 / 128, 1 / 64, 1 / 32, 1 / 16)),
                Grid("target_ratio", (0.7,), (0.5, 0.6, 0.7, 0.85), label="top_afa, lower target"),
            ),
        },
    ),
    Architecture(
        name="afa_threshold",
        about="the features above a threshold that follows from the token's norm (no k, sparse)",
        classes=(
            "AFAThresholdTrainingSAE", "AFAThresholdTrainingSAEConfig", "AFAThresholdSAE", "AFAThresholdSAEConfig",
        ),
        color="#CC79A7",
        exportable=True,
        grids={
            "ground-truth": (
                Grid("threshold_scale", (0.85,), (0.7, 0.85, 1.0), _STANDARDISED, phase="threshold_warm_up_steps"),
            ),
            "activations": (
                Grid("threshold_scale", (0.85,), (0.5, 0.7, 0.85, 1.0), phase="threshold_warm_up_steps"),
            ),
        },
    ),
    Architecture(
        name="afa_pursuit",
        about="the features that stand out from what the stronger ones leave over, stage by stage (no k, no encoder)",
        classes=("AFAPursuitTrainingSAE", "AFAPursuitTrainingSAEConfig", "AFAPursuitSAE", "AFAPursuitSAEConfig"),
        color="#882255",
        exportable=True,
        grids={
            "ground-truth": (
                Grid("threshold_scale", (1.0,), (0.85, 1.0, 1.15), phase="growth_steps"),
            ),
            "activations": (
                Grid("threshold_scale", (1.0,), (0.7, 0.85, 1.0, 1.15), phase="growth_steps"),
            ),
        },
    ),
    Architecture(
        name="mutual_choice",
        about="the k features per token on average with the largest pre-activations of the batch",
        classes=("MutualChoiceTrainingSAE", "MutualChoiceTrainingSAEConfig"),
        color="#66A61E",
        saved_as="jumprelu",
        grids={
            "ground-truth": (Grid("k", (3,), (3, 6)),),
            "activations": (Grid("k", (8, 32), (8, 16, 32)),),
        },
    ),
    Architecture(
        name="feature_choice",
        about="for each feature its best tokens of the batch, k per token on average, by equal or Zipfian shares",
        classes=("FeatureChoiceTrainingSAE", "FeatureChoiceTrainingSAEConfig"),
        color="#A89000",
        saved_as="jumprelu",
        grids={
            "ground-truth": (
                Grid("k", (3,), (3, 6)),
                Grid("k", (3,), (3, 6), _ZIPF, phase="feature_choice_start_step", label="feature_choice, zipf"),
            ),
            "activations": (
                Grid("k", (32,), (8, 32)),
                Grid("k", (32,), (8, 32), _ZIPF, phase="feature_choice_start_step", label="feature_choice, zipf"),
            ),
        },
    ),
)  # fmt: skip


def architecture_named(name: str) -> Architecture | None:
    """Return the entry of an architecture; None if it is not one of this package's."""
    return next((entry for entry in ARCHITECTURES if entry.name == name), None)


def public_classes() -> dict[str, tuple[str, ...]]:
    """Return the names of the public classes by the module that defines them."""
    return {entry.module: entry.classes for entry in ARCHITECTURES}
