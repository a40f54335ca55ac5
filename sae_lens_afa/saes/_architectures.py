"""The list of architectures; importing this module registers them with SAELens."""

from __future__ import annotations

from typing import Any

from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig

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


def register_architectures() -> None:
    """Make the architectures known to SAELens. Safe to call again; a reload puts the new classes in place.

    Raises:
        RuntimeError: another package has registered one of the names.
    """
    _register_inference(TopAFASAEConfig.architecture(), TopAFASAE, TopAFASAEConfig)
    _register_training(TopAFATrainingSAEConfig.architecture(), TopAFATrainingSAE, TopAFATrainingSAEConfig)
    _register_inference("afa_threshold", AFAThresholdSAE, AFAThresholdSAEConfig)
    _register_training("afa_threshold", AFAThresholdTrainingSAE, AFAThresholdTrainingSAEConfig)
    # These two are saved as SAELens' own "jumprelu".
    _register_training("mutual_choice", MutualChoiceTrainingSAE, MutualChoiceTrainingSAEConfig)
    _register_training("feature_choice", FeatureChoiceTrainingSAE, FeatureChoiceTrainingSAEConfig)


def _register_inference(name: str, sae: type[SAE[Any]], config: type[SAEConfig]) -> None:
    _give_up_own_entry(SAE_CLASS_REGISTRY, name)
    register_sae_class(name, sae, config)


def _register_training(name: str, sae: type[TrainingSAE[Any]], config: type[TrainingSAEConfig]) -> None:
    _give_up_own_entry(SAE_TRAINING_CLASS_REGISTRY, name)
    register_sae_training_class(name, sae, config)


def _give_up_own_entry(registry: dict[str, Any], name: str) -> None:
    """Drop what an earlier import of this package registered under `name`; refuse what another package did."""
    if name not in registry:
        return
    holder = registry[name][0].__module__
    if holder.partition(".")[0] != __name__.partition(".")[0]:
        raise RuntimeError(
            f"SAELens already has an architecture {name!r}, registered by {holder}: sae_lens_afa cannot register"
            f" its own. Do not import both in one process."
        )
    del registry[name]


register_architectures()
