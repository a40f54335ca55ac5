"""Registration with SAELens of the list of architectures; importing this module registers them."""

from __future__ import annotations

import importlib
from typing import Any

from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)

from sae_lens_afa.architectures import ARCHITECTURES


def register_architectures() -> None:
    """Make the architectures known to SAELens. Safe to call again; a reload puts the new classes in place.

    Raises:
        RuntimeError: another package has registered one of the names.

    Example:
        >>> from sae_lens.registry import get_sae_training_class
        >>> from sae_lens_afa.saes import register_architectures
        >>> register_architectures()
        >>> get_sae_training_class("top_afa")[0].__name__
        'TopAFATrainingSAE'
    """
    for entry in ARCHITECTURES:
        module = importlib.import_module(entry.module)
        training_sae, training_config, *inference = (getattr(module, name) for name in entry.classes)
        _give_up_own_entry(SAE_TRAINING_CLASS_REGISTRY, entry.name)
        register_sae_training_class(entry.name, training_sae, training_config)
        if inference:  # the others are saved as an architecture of SAELens' own
            _give_up_own_entry(SAE_CLASS_REGISTRY, entry.name)
            register_sae_class(entry.name, *inference)


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
