"""The architectures, registered with SAELens when this package or SAELens is imported."""

from __future__ import annotations

# First of all: while another thread imports SAELens and with it the architectures, this one has to wait here, before
# it begins with them.
import sae_lens  # noqa: F401  # pyright: ignore[reportUnusedImport]

from sae_lens_afa.saes._architectures import register_architectures
from sae_lens_afa.saes.afa_threshold_sae import (
    AFAThresholdSAE,
    AFAThresholdSAEConfig,
    AFAThresholdTrainingSAE,
    AFAThresholdTrainingSAEConfig,
)
from sae_lens_afa.saes.feature_choice_sae import FeatureChoiceTrainingSAE, FeatureChoiceTrainingSAEConfig
from sae_lens_afa.saes.mutual_choice_sae import MutualChoiceTrainingSAE, MutualChoiceTrainingSAEConfig
from sae_lens_afa.saes.top_afa_sae import (
    TopAFASAE,
    TopAFASAEConfig,
    TopAFATrainingSAE,
    TopAFATrainingSAEConfig,
)

__all__ = [
    "AFAThresholdSAE",
    "AFAThresholdSAEConfig",
    "AFAThresholdTrainingSAE",
    "AFAThresholdTrainingSAEConfig",
    "FeatureChoiceTrainingSAE",
    "FeatureChoiceTrainingSAEConfig",
    "MutualChoiceTrainingSAE",
    "MutualChoiceTrainingSAEConfig",
    "TopAFASAE",
    "TopAFASAEConfig",
    "TopAFATrainingSAE",
    "TopAFATrainingSAEConfig",
    "register_architectures",
]
