"""Sharing SAEs on the Hugging Face Hub: pushed whole, loaded as they were pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_afa.hub._errors import HubError

# At once: the function `load` takes the place of its module.
from sae_lens_afa.hub.load import RepoInfo, info, list_saes, load, pull

if TYPE_CHECKING:
    from sae_lens_afa.hub.named import load_saes
    from sae_lens_afa.hub.push import push_to_hub
else:
    from sae_lens_afa._lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        globals(), {"sae_lens_afa.hub.named": ("load_saes",), "sae_lens_afa.hub.push": ("push_to_hub",)}
    )

__all__ = ["HubError", "RepoInfo", "info", "list_saes", "load", "load_saes", "pull", "push_to_hub"]
