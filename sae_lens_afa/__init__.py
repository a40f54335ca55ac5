"""Sparse autoencoders that choose their own number of active features per token, as a plugin of SAELens.

Importing this package registers the architectures "top_afa", "afa_threshold", "mutual_choice" and "feature_choice"
with SAELens.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from sae_lens_afa import functional, hub, selection
from sae_lens_afa.evals import (
    AFAEvaluator,
    AFAMetrics,
    AFAResult,
    evaluate_activations,
    run_afa_evals,
)
from sae_lens_afa.hub import HubError, list_saes, load, push_to_hub
from sae_lens_afa.interop import (
    JumpReLUReport,
    convert_reference_checkpoint,
    export_jumprelu,
    jumprelu_report,
)
from sae_lens_afa.saes import (
    AFAThresholdSAE,
    AFAThresholdSAEConfig,
    AFAThresholdTrainingSAE,
    AFAThresholdTrainingSAEConfig,
    FeatureChoiceTrainingSAE,
    FeatureChoiceTrainingSAEConfig,
    MutualChoiceTrainingSAE,
    MutualChoiceTrainingSAEConfig,
    TopAFASAE,
    TopAFASAEConfig,
    TopAFATrainingSAE,
    TopAFATrainingSAEConfig,
    register_architectures,
)

if TYPE_CHECKING:
    from sae_lens_afa import plots

__version__ = _version("sae-lens-afa")

__all__ = [
    "AFAEvaluator",
    "AFAMetrics",
    "AFAResult",
    "AFAThresholdSAE",
    "AFAThresholdSAEConfig",
    "AFAThresholdTrainingSAE",
    "AFAThresholdTrainingSAEConfig",
    "FeatureChoiceTrainingSAE",
    "FeatureChoiceTrainingSAEConfig",
    "HubError",
    "JumpReLUReport",
    "MutualChoiceTrainingSAE",
    "MutualChoiceTrainingSAEConfig",
    "TopAFASAE",
    "TopAFASAEConfig",
    "TopAFATrainingSAE",
    "TopAFATrainingSAEConfig",
    "__version__",
    "convert_reference_checkpoint",
    "evaluate_activations",
    "export_jumprelu",
    "functional",
    "hub",
    "jumprelu_report",
    "list_saes",
    "load",
    "plots",
    "push_to_hub",
    "run_afa_evals",
    "selection",
]

register_architectures()


def __getattr__(name: str) -> Any:
    """Import `plots` when it is first used."""
    if name == "plots":
        return importlib.import_module("sae_lens_afa.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
