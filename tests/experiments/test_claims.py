"""Processes that share the folder of a sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_lens_afa.experiments.claims import claimed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a folder is for one process there")

HOLD = "import sys, time; from pathlib import Path; from sae_lens_afa.experiments.claims import claimed\n" + (
    "with claimed(Path(sys.argv[1]), 'a') as ours: print(ours, flush=True); time.sleep(60)"
)
COMMAND = [
    "sweep",
    "ground-truth",
    "--preset",
    "tiny",
    "--grid",
    "topk:k=2,3",
    "--grid",
    "afa_pursuit:threshold_scale=1",
]


def test_a_claim_is_of_one_process_and_ends_with_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with claimed(tmp_path, "a") as ours, claimed(tmp_path, "b") as other:
        assert (ours, other) == (False, True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with claimed(tmp_path, "a") as ours:
        assert ours


def start(folder: Path, *launcher: str, steps: int) -> subprocess.Popen:
    args = [*COMMAND, "--seed", "0", "--seed", "1", "--seed", "2", "--steps", str(steps), "--output", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SAE_LENS_AFA_CACHE": str(folder.parent / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "sae_lens_afa.cli", *args],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_torchrun_spreads_a_sweep_and_what_a_killed_process_had_in_work_is_done_again(tmp_path):
    alone = start(tmp_path / "one", steps=30)
    assert alone.wait(timeout=200) == 0, alone.communicate()[0]
    # A process that dies with a group in work: the others of the folder go on with it.
    lost = start(tmp_path / "many", steps=30)
    runs = tmp_path / "many" / "runs"
    while not list(runs.glob(".*seed*.lock")):
        assert lost.poll() is None, lost.communicate()[0]
        time.sleep(0.01)
    lost.kill()
    lost.wait()
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    several = start(tmp_path / "many", *launcher, steps=30)
    said = several.communicate(timeout=300)[0]
    assert several.returncode == 0, said
    assert said.count("written:") == 1
    assert not list(runs.glob(".*.lock"))
    for name in ("runs.csv", "report.md"):
        ours, theirs = ((tmp_path / folder / name).read_text().splitlines() for folder in ("one", "many"))
        drop = ("seconds", "made") if name == "runs.csv" else ("sae-lens-afa sweep",)
        assert without(ours, drop) == without(theirs, drop)


def without(lines: list[str], drop: tuple[str, ...]) -> list[str]:
    """Lines of a table without columns that time runs, or of a report without lines that name the folder."""
    if lines and "," in lines[0]:
        keep = [i for i, name in enumerate(lines[0].split(",")) if not any(word in name for word in drop)]
        return [",".join(line.split(",")[i] for i in keep if i < len(line.split(","))) for line in lines]
    return [line for line in lines if not any(word in line for word in drop)]
