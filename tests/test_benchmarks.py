"""The benchmarks run, at a size at which their figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_the_table_has_every_goal(tmp_path):
    file = tmp_path / "found.json"
    printed = run(
        *("-m", "benchmarks", "--rows", "selection", "step", "inference", "memory", "--json", str(file)),
        *("--rounds", "2", "--batch", "70", "--d-in", "32", "--d-sae", "640"),
    )
    found = json.loads(file.read_text())
    assert {"cpu", "threads", "torch", "numba", "sae-lens", "THP_MEM_ALLOC_ENABLE"} <= set(found["setting"])
    assert len(found["goals"]) == 12
    for row in found["goals"]:
        assert row["what"] in printed
        if "on GPU" in row["what"]:
            assert row["verdict"] == "not measured"
        else:
            assert row["verdict"] in ("goal", "stretch", "MISSED")
            assert 0 < row["figure"]["q25"] <= row["figure"]["median"] <= row["figure"]["q75"]


def test_dead_features_compares_all_architectures(tmp_path):
    sizes = {
        "seeds": 2, "steps": 30, "batch": 64, "d-in": 8, "features": 32, "d-sae": 32, "dead-feature-window": 5,
        "eval-tokens": 256, "k": 2,
    }  # fmt: skip
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    printed = run("-m", "benchmarks.dead_features", *flags, "--output", str(tmp_path))
    result = json.loads((tmp_path / "dead_features.json").read_text())
    table = (tmp_path / "dead_features.md").read_text()
    assert table in printed
    assert len(result["runs"]) == 2
    for found in result["runs"]:
        assert len(found) == 5
        for name, figures in found.items():
            assert f"| {name} |" in table
            assert 0 <= figures["dead_latents"] <= 32
            assert figures["training_l0"] <= 2


def test_the_committed_results_are_of_the_committed_settings():
    script = "import json, sys; sys.argv = ['x']; from benchmarks.dead_features import *; "
    script += "print(json.dumps(settings(parse())))"
    result = json.loads((ROOT / "docs/results/dead_features.json").read_text())
    assert result["settings"] == json.loads(run("-c", script))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_allocation_measures_time_and_memory():
    script = "import json; from benchmarks.allocation import measure; print(json.dumps(measure((512, 256, 4), 2)))"
    rows = json.loads(run("-c", script).splitlines()[-1])
    assert [row["variant"] for row in rows] == [
        "batchtopk", "mutual_choice", "feature_choice, uniform", "feature_choice, zipf",
    ]  # fmt: skip
    assert rows[0]["time_ratio_to_batchtopk"]["median"] == 1
