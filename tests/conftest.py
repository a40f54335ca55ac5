"""The bundled model and text, and repeatable examples of hypothesis."""

import hypothesis
import pytest
from datasets import Dataset

from sae_lens_afa.demo import load_model, load_text

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
