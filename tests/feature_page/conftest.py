"""Stores that read the bundled text."""

from __future__ import annotations

import warnings

import pytest
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE


@pytest.fixture
def store(model, dataset):
    def make(sae: SAE, text=dataset, **options) -> ActivationsStore:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ActivationsStore.from_sae(
                model, sae, text, streaming=False, store_batch_size_prompts=4, total_tokens=10, **options
            )

    return make
