"""Published norms of the AFA paper's authors."""

import json
from pathlib import Path

import pandas as pd
import pytest

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="session")
def golden_zf() -> dict:
    return json.loads((DATA / "zf_gpt2_small.json").read_text())["gpt2-small-res-jb"]


@pytest.fixture(scope="session")
def golden_norms() -> pd.DataFrame:
    return pd.read_csv(DATA / "zf_gpt2_small_norms.csv")
