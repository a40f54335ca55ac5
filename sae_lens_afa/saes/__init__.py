"""The architectures, registered with SAELens when this package or SAELens is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

# First of all: while another thread imports SAELens and with it the architectures, this one has to wait here, before
# it begins with them.
import sae_lens  # noqa: F401  # pyright: ignore[reportUnusedImport]

from sae_lens_afa.saes.registration import register_architectures as register_architectures

if TYPE_CHECKING:
    from sae_lens_afa.architectures import *
else:
    from sae_lens_afa._lazy import lazy_names
    from sae_lens_afa.architectures import public_classes

    __all__ = ["register_architectures", *(name for names in public_classes().values() for name in names)]
    __getattr__, __dir__ = lazy_names(globals(), public_classes())
