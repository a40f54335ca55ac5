"""The features of one SAE as a page to look at: where each is active, what it writes, what comes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_afa.feature_page.features_report import FeaturesReport

if TYPE_CHECKING:
    from sae_lens_afa.feature_page.by_name import features_by_name
    from sae_lens_afa.feature_page.by_store import features
else:
    from sae_lens_afa._lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        globals(),
        {
            "sae_lens_afa.feature_page.by_name": ("features_by_name",),
            "sae_lens_afa.feature_page.by_store": ("features",),
        },
    )

__all__ = ["FeaturesReport", "features", "features_by_name"]
