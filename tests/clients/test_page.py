"""docs/clients.md quotes files that are run, and what it says of SAELens is so."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from sae_lens import SAE

import sae_lens_afa as afa

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
EXAMPLES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "clients").glob("*.py")}


def test_the_page_quotes_its_examples():
    quoted = set()
    for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.S | re.M):
        if not block.startswith("pip install"):
            (name,) = [name for name, text in EXAMPLES.items() if block in text]
            quoted.add(name)
    assert quoted == EXAMPLES.keys()
    assert set(re.findall(r"\.\./examples/clients/(\w+\.py)", PAGE)) == EXAMPLES.keys()


def test_the_page_and_the_tests_are_about_the_same_versions():
    tests = (ROOT / "tests" / "clients" / "test_clients.py").read_text(encoding="utf-8")
    for name, version in re.findall(r'environment\("([\w-]+)==([\d.]+)"', tests):
        (row,) = [line for line in PAGE.splitlines() if re.match(rf"\|.*{name.removeprefix('sae-')[:6]}", line, re.I)]
        assert version in row


# When one of these two begins to work, the page has a section too many.


def test_saelens_does_not_pickle_an_sae():
    sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=4, d_sae=8))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(sae)


def test_saelens_does_not_load_a_folder_as_a_release(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    afa.TopAFASAE(afa.TopAFASAEConfig(d_in=4, d_sae=8)).save_model("sae")
    assert isinstance(afa.load("sae"), SAE)
    with pytest.raises(ValueError, match="not a valid huggingface repo"):
        SAE.from_pretrained("sae", "sae")
