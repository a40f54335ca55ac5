"""The demo's language model: four layers, 192 wide, GPT-2's architecture, shipped with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from sae_lens import HookedSAETransformer

from sae_lens_afa.defaults import BUNDLED_MODEL
from sae_lens_afa.loading.gpt2_folder import load_gpt2_folder


def model_folder() -> Path:
    """Return the bundled Hugging Face model folder: config.json, model.safetensors (bf16), tokenizer files.

    Example:
        >>> import sae_lens_afa as afa
        >>> (afa.demo.model_folder() / "config.json").is_file()
        True
    """
    return Path(str(files("sae_lens_afa.demo"))) / BUNDLED_MODEL


def load_model(device: str | torch.device = "cpu") -> HookedSAETransformer:
    """Load the bundled model in float32; no network is used.

    Example:
        >>> import sae_lens_afa as afa
        >>> model = afa.demo.load_model()
        >>> prompt = model.to_tokens("In the beginning God created the heaven and the")
        >>> model.to_string(model(prompt)[0, -1].argmax())
        ' earth'
    """
    return load_gpt2_folder(model_folder(), device)
