"""Tests and doctests run offline and deterministic, with the shapes of the selection's back ends checked."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import pytest
import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in its interpreter, on the CPU

TESTS = Path(__file__).parent / "tests"

# Here, before anything is collected, and not of what torch.compile traces: it cannot look into beartype's checks.
install_import_hook("sae_lens_afa.selection", "beartype.beartype")

# These import Triton or numba, which need not be installed.
collect_ignore_glob = ["sae_lens_afa/kernels/*", "sae_lens_afa/selection/_triton.py"]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests in the package alone: helpers of the tests are no modules to import unasked."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if helper and TESTS in collection_path.parents else None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _doctests_have_a_folder_of_their_own(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
