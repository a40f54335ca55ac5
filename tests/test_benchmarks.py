"""The benchmarks of the allocation run, at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*command: str, **kwargs) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dead_features_compares_all_architectures(tmp_path):
    sizes = {
        "seeds": 2, "steps": 30, "batch": 64, "d-in": 8, "features": 32, "d-sae": 32, "dead-feature-window": 5,
        "eval-tokens": 256, "k": 2,
    }  # fmt: skip
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    printed = run(str(BENCHMARKS / "dead_features.py"), *flags, "--output", str(tmp_path))
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
    script = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['x']; import dead_features;"
        "import json; print(json.dumps(dead_features.settings(dead_features.parse())))"
    )
    result = json.loads((BENCHMARKS.parent / "docs/results/dead_features.json").read_text())
    assert result["settings"] == json.loads(run("-c", script))


def test_bench_allocation_measures_time_and_memory(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import bench_allocation as b;"
        "import json; print(json.dumps(b.measure((64, 256, 4), 2)))"
    )
    rows = json.loads(run("-c", script).splitlines()[-1])
    assert [row["variant"] for row in rows] == [
        "batchtopk", "mutual_choice", "feature_choice uniform", "feature_choice zipf",
    ]  # fmt: skip
    assert rows[0]["time_ratio_to_batchtopk"]["median"] == 1
