"""The bundled model and text, a local Hub, and repeatable examples of hypothesis."""

import sys
from pathlib import Path

import hypothesis
import pytest
from datasets import Dataset

from sae_lens_afa.demo import load_model, load_text

sys.path.insert(0, str(Path(__file__).parent / "hub"))

from hub_fixtures import _server, client, hub

__all__ = ["_server", "client", "hub"]

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session")
def model():
    """The bundled language model."""
    return load_model()


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """A few chapters of the bundled text, enough for the short runs of the tests."""
    return Dataset.from_dict({"text": load_text().train[:60]})
