"""Sharing SAEs on the Hugging Face Hub: pushed whole, loaded as they were pushed."""

from __future__ import annotations

from sae_lens_afa.hub._errors import HubError
from sae_lens_afa.hub.load import RepoInfo, info, list_saes, load, pull
from sae_lens_afa.hub.push import push_to_hub

__all__ = ["HubError", "RepoInfo", "info", "list_saes", "load", "pull", "push_to_hub"]
