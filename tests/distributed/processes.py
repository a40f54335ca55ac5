"""Processes that torchrun starts, for tests: work of `ranks_work`, or the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from sae_lens_afa.demo import load_text, model_folder

WORK = Path(__file__).with_name("ranks_work.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment() -> dict[str, str]:
    """One thread for each process, and the modules of the tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(WORK.parent.parent), *sys.path])}


def on_ranks(n: int, folder: Path, job: str) -> list[dict]:
    """Do a job of `ranks_work` on n processes, and return what each found."""
    command = [*TORCHRUN, str(n), str(WORK), str(folder), job]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{job}-{rank}.json").read_text()) for rank in range(n)]


def flags(folder: Path, *, steps: int = 100, n_checkpoints: int = 9) -> list[str]:
    """Flags of a short training; its text is written to the folder."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(load_text().train[:20]), encoding="utf-8")
    settings = {
        "architecture": "afa_pursuit", "d_in": 192, "d_sae": 256, "reseed_steps": 5, "lr": 1e-3,
        "model_name": model_folder(), "hook_name": "blocks.1.hook_resid_pre", "dataset_path": text, "streaming": False,
        "context_size": 32, "training_tokens": 128 * steps, "train_batch_size_tokens": 128,
        "store_batch_size_prompts": 4, "n_batches_in_buffer": 8, "n_checkpoints": n_checkpoints,
        "checkpoint_path": folder / "checkpoints", "output_path": folder / "out",
    }  # fmt: skip
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


class Job:
    """A run of the command on two ranks, which a test may disturb."""

    def __init__(self, args: list[str], log: Path, *, restarts: int = 0) -> None:
        self._log = log
        command = [*TORCHRUN, "2", "--max-restarts", str(restarts), "-m", "sae_lens_afa.distributed", *args]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, env=environment(), stdout=file, stderr=subprocess.STDOUT)

    def wait_for_a_checkpoint(self, folder: Path) -> None:
        """Wait until there is a checkpoint in a folder of runs."""
        while not list(folder.glob("*/[0-9]*")):
            assert self.process.poll() is None, self.said()
            time.sleep(0.01)

    def pid_of(self, rank: int) -> int:
        """Return the process of a rank."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (path / "environ").read_text().split("\0")
            except (OSError, ValueError):  # it has ended
                continue
            if parent == self.process.pid and f"RANK={rank}" in variables:
                return int(path.name)
        raise AssertionError(f"rank {rank} has no process")

    def said(self) -> str:
        """Return what was printed."""
        return self._log.read_text().replace("\r", "\n")
