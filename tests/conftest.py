"""Offline, deterministic, with the shape annotations of the selection's back ends checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in its interpreter, on the CPU

from jaxtyping import install_import_hook

# Not of what torch.compile traces: it cannot look into beartype's checks.
install_import_hook("sae_lens_afa.selection", "beartype.beartype")

import hypothesis
import pytest
from datasets import Dataset

from sae_lens_afa.demo import load_model, load_text

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model():
    """The bundled language model."""
    return load_model()


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """A few chapters of the bundled text, enough for the short runs of the tests."""
    return Dataset.from_dict({"text": load_text().train[:60]})
