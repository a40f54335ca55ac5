"""Sparse autoencoders that choose their own number of active features per token, as a plugin of SAELens.

Importing this package registers the architectures "top_afa", "afa_threshold", "mutual_choice" and "feature_choice"
with SAELens, as soon as SAELens is imported. What it offers is imported when it is first used.
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from sae_lens_afa._registration import register_with_sae_lens as _register_with_sae_lens

if TYPE_CHECKING:
    from sae_lens_afa import demo as demo
    from sae_lens_afa import evals as evals
    from sae_lens_afa import experiments as experiments
    from sae_lens_afa import functional, hub, plots, selection
    from sae_lens_afa import interop as interop
    from sae_lens_afa import runner as runner
    from sae_lens_afa import saes as saes
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
    )
    from sae_lens_afa.saes import register_architectures as register_architectures
else:
    from sae_lens_afa._lazy import lazy_names as _lazy_names

    __getattr__, __dir__ = _lazy_names(
        globals(),
        {
            "sae_lens_afa.evals": (
                "AFAEvaluator", "AFAMetrics", "AFAResult", "evaluate_activations", "run_afa_evals",
            ),
            "sae_lens_afa.hub": ("HubError", "list_saes", "load", "push_to_hub"),
            "sae_lens_afa.interop": (
                "JumpReLUReport", "convert_reference_checkpoint", "export_jumprelu", "jumprelu_report",
            ),
            "sae_lens_afa.saes": (
                "AFAThresholdSAE", "AFAThresholdSAEConfig", "AFAThresholdTrainingSAE", "AFAThresholdTrainingSAEConfig",
                "FeatureChoiceTrainingSAE", "FeatureChoiceTrainingSAEConfig",
                "MutualChoiceTrainingSAE", "MutualChoiceTrainingSAEConfig",
                "TopAFASAE", "TopAFASAEConfig", "TopAFATrainingSAE", "TopAFATrainingSAEConfig",
                "register_architectures",
            ),
        },
        modules=(
            "demo", "evals", "experiments", "functional", "hub", "interop", "plots", "runner", "saes", "selection",
        ),
    )  # fmt: skip

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

_register_with_sae_lens()
