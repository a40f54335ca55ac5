"""docs/extending.md: what it shows is done to a copy of the package, which then knows a new architecture and metric."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
MODULE, ENTRY, FOR_TYPE_CHECKERS, METRIC = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
END_OF_LIST = re.compile(r"^[\])]  # fmt: skip$", re.M)


def extended(path: Path, block: str, before: re.Pattern[str] | str, after: str = "") -> None:
    """Put a block of the page into a file: before the first such place after the text `after`."""
    text = path.read_text()
    at = re.compile(before).search(text, text.index(after)).start()
    path.write_text(text[:at] + block + text[at:])


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict:
    """What the extended copy, in a process of its own, knows of both."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "sae_lens_afa", root / "sae_lens_afa", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    package = root / "sae_lens_afa"
    (package / "saes" / "bit_budget_sae.py").write_text(MODULE)
    extended(package / "architectures.py", FOR_TYPE_CHECKERS, r"\n\nclass Grid", after="if TYPE_CHECKING")
    extended(package / "architectures.py", ENTRY, END_OF_LIST, after="ARCHITECTURES = (")
    extended(package / "evals" / "metric_list.py", METRIC, END_OF_LIST, after="_OF_BOTH_FORMS = [")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/extended_package.py"), str(root), "bit_budget", "active_share_mean"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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
