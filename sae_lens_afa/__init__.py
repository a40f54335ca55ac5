"""Sparse autoencoders that choose their own number of active features per token, as a plugin of SAELens.

Importing this package registers the architecture "top_afa" with SAELens.
"""

from __future__ import annotations

from importlib.metadata import version as _version

from sae_lens_afa import functional, selection
from sae_lens_afa.saes import (
    TopAFASAE,
    TopAFASAEConfig,
    TopAFATrainingSAE,
    TopAFATrainingSAEConfig,
    register_architectures,
)

__version__ = _version("sae-lens-afa")

__all__ = [
    "TopAFASAE",
    "TopAFASAEConfig",
    "TopAFATrainingSAE",
    "TopAFATrainingSAEConfig",
    "__version__",
    "functional",
    "selection",
]

register_architectures()
