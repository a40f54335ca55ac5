"""Sparse autoencoders that choose their own number of active features per token, as a plugin of SAELens.

Importing this package registers its architectures with SAELens, as soon as SAELens is imported. Its names are
imported when they are first used:

    >>> import sae_lens_afa as afa
    >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=16, d_sae=64))
    >>> sae.cfg.architecture()
    'top_afa'
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from sae_lens_afa._import_hook import register_with_sae_lens as _register_with_sae_lens

if TYPE_CHECKING:
    from sae_lens_afa import demo as demo
    from sae_lens_afa import evals as evals
    from sae_lens_afa import experiments as experiments
    from sae_lens_afa import feature_page as feature_page
    from sae_lens_afa import functional as functional
    from sae_lens_afa import hub as hub
    from sae_lens_afa import interop as interop
    from sae_lens_afa import loading as loading
    from sae_lens_afa import plots as plots
    from sae_lens_afa import reports as reports
    from sae_lens_afa import runner as runner
    from sae_lens_afa import saes as saes
    from sae_lens_afa import selection as selection
    from sae_lens_afa.architectures import *
    from sae_lens_afa.evals import AFAEvaluator as AFAEvaluator
    from sae_lens_afa.evals import AFAMetrics as AFAMetrics
    from sae_lens_afa.evals import AFAResult as AFAResult
    from sae_lens_afa.evals import evaluate_activations as evaluate_activations
    from sae_lens_afa.evals import run_afa_evals as run_afa_evals
    from sae_lens_afa.feature_page import FeaturesReport as FeaturesReport
    from sae_lens_afa.feature_page import features as features
    from sae_lens_afa.hub import HubError as HubError
    from sae_lens_afa.hub import list_saes as list_saes
    from sae_lens_afa.hub import load as load
    from sae_lens_afa.hub import push_to_hub as push_to_hub
    from sae_lens_afa.interop import JumpReLUReport as JumpReLUReport
    from sae_lens_afa.interop import convert_reference_checkpoint as convert_reference_checkpoint
    from sae_lens_afa.interop import export_jumprelu as export_jumprelu
    from sae_lens_afa.interop import jumprelu_report as jumprelu_report
    from sae_lens_afa.saes import register_architectures as register_architectures
else:
    from sae_lens_afa._lazy import lazy_names as _lazy_names
    from sae_lens_afa.architectures import public_classes as _public_classes

    _MODULES = (
        "demo", "evals", "experiments", "feature_page", "functional", "hub", "interop", "loading", "plots", "reports",
        "runner", "saes", "selection",
    )  # fmt: skip
    _NAMES = {
        "sae_lens_afa.evals": ("AFAEvaluator", "AFAMetrics", "AFAResult", "evaluate_activations", "run_afa_evals"),
        "sae_lens_afa.feature_page": ("FeaturesReport", "features"),
        "sae_lens_afa.hub": ("HubError", "list_saes", "load", "push_to_hub"),
        "sae_lens_afa.interop": (
            "JumpReLUReport", "convert_reference_checkpoint", "export_jumprelu", "jumprelu_report",
        ),
        "sae_lens_afa.saes": ("register_architectures",),
        **_public_classes(),
    }  # fmt: skip
    __all__ = sorted({"__version__", *_MODULES, *(name for names in _NAMES.values() for name in names)})
    __getattr__, __dir__ = _lazy_names(globals(), _NAMES, _MODULES)

__version__ = _version("sae-lens-afa")

_register_with_sae_lens()
