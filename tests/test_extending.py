"""docs/extending.md: what it shows is done to a copy of the package, which then knows a new architecture and metric."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
MODULE, ENTRY, FOR_TYPE_CHECKERS, METRIC = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
END_OF_LIST = r"^[\])]  # fmt: skip$"


def extend(path: Path, block: str, before: str, after: str) -> None:
    """Put a block of the page into a file: indented, before the first such line after the text `after`."""
    text = path.read_text()
    at = re.compile(before, re.M).search(text, text.index(after)).start()
    path.write_text(text[:at] + textwrap.indent(block, "    ") + text[at:])


def entry(block: str) -> str:
    return block.rstrip() + ",\n"


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict:
    """What the extended copy, in a process of its own, knows of both."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "sae_lens_afa", root / "sae_lens_afa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    package = root / "sae_lens_afa"
    (package / "saes" / "bit_budget_sae.py").write_text(MODULE)
    extend(package / "architectures.py", FOR_TYPE_CHECKERS, r"^\n\nclass Grid", after="if TYPE_CHECKING")
    extend(package / "architectures.py", entry(ENTRY), END_OF_LIST, after="ARCHITECTURES = (")
    extend(package / "evals" / "metric_list.py", entry(METRIC), END_OF_LIST, after="_OF_BOTH_FORMS = [")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/extended_package.py"), str(root), "bit_budget", "active_share_mean"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_architecture_is_its_file_and_an_entry_in_the_list(known):
    known = known["architecture"]
    classes = ["BitBudgetSAE", "BitBudgetSAEConfig", "BitBudgetTrainingSAE", "BitBudgetTrainingSAEConfig"]
    assert known["offered"] == classes
    assert known["loaded"] == "BitBudgetSAE"
    assert known["active"] == math.floor(64 / math.log2(64))
    assert known["by flags"] == ["BitBudgetTrainingSAEConfig", math.floor(32 / math.log2(64))]
    assert known["in sweeps"] == {"ground-truth": [16, 32, 64], "activations": [32, 64, 128]}
    assert known["color"] == "#7570B3"
    assert known["exported from"] == "bit_budget"
    assert "import sae_lens_afa" in known["card"]
    assert "bit_budget" in known["card"]
    assert known["entry points"]["bit_budget"] == "sae_lens_afa"


@pytest.mark.slow
def test_a_metric_is_an_entry_in_the_list(known):
    known = known["metric"]
    assert known["value"] == known["to_dict"] == known["file"] == 0.25
    assert re.search(r"active share of all features, mean +25\.000%", known["table"])
    assert "active_share" in known["columns"]
    assert "active share" in known["sweeps"]
    assert "| active share |" in known["card"]


def test_both_fit_into_half_a_screen():
    for block in (MODULE, ENTRY + FOR_TYPE_CHECKERS, METRIC):
        assert block.count("\n") <= 45
