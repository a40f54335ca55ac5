"""The benchmarks run, at a size at which their figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_the_table_has_every_goal(tmp_path):
    file = tmp_path / "found.json"
    printed = run(
        *("--rows", "selection", "step", "inference", "memory", "--json", str(file)),
        *("--rounds", "2", "--batch", "70", "--d-in", "32", "--d-sae", "640"),
    )
    found = json.loads(file.read_text())
    assert {"cpu", "threads", "torch", "numba", "sae-lens", "THP_MEM_ALLOC_ENABLE"} <= set(found["setting"])
    assert len(found["goals"]) == 11
    for row in found["goals"]:
        assert row["what"] in printed
        if "on GPU" in row["what"]:
            assert row["verdict"] == "not measured"
        else:
            assert row["verdict"] in ("goal", "stretch", "MISSED")
            assert 0 < row["figure"]["q25"] <= row["figure"]["median"] <= row["figure"]["q75"]
