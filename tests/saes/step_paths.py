"""The paths that a training step can take, and a fixture that puts an SAE's step on one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sae_lens import SAE

from sae_lens_afa import crossover

PATHS = ("sparse", "dense", "hooked", "without numba")
Take = Callable[[str, SAE], None]


@pytest.fixture
def take(monkeypatch) -> Take:
    """Put an SAE's step on one of the paths, by what decides between them."""

    def choose(path: str, sae: SAE) -> None:
        monkeypatch.setattr(crossover, "MIN_SIZE", 0)
        monkeypatch.setattr(crossover, "max_density", lambda work: -1.0 if path == "dense" else 1.0)
        monkeypatch.delenv("SAE_LENS_AFA_BACKEND", raising=False)
        if path == "without numba":
            monkeypatch.setenv("SAE_LENS_AFA_BACKEND", "torch")
        if path == "hooked":
            sae.add_hook("hook_sae_acts_post", lambda acts, hook: acts)

    return choose
