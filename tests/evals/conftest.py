"""Published norms of the AFA paper's authors, and a result."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_lens_afa import AFAMetrics, AFAResult

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def golden_zf() -> dict:
    return json.loads((DATA / "zf_gpt2_small.json").read_text())["gpt2-small-res-jb"]


@pytest.fixture(scope="session")
def golden_norms() -> pd.DataFrame:
    return pd.read_csv(DATA / "zf_gpt2_small_norms.csv")


@pytest.fixture
def result() -> AFAResult:
    """Metrics of thirty random tokens."""
    metrics = AFAMetrics(7)
    x, acts = torch.randn(30, 4), torch.rand(30, 7)
    metrics.update(x, acts, torch.randn(7, 4), torch.randn(4), 0.9 * x)
    return metrics.compute()
