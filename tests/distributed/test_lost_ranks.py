"""Ranks that die, signals, and runs that other ranks go on with."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ranks_work
import torch
from processes import Job, flags, on_ranks
from safetensors.torch import load_file

from sae_lens_afa.runner import InterruptibleTrainingRunner, check_checkpoint, config_from_checkpoint
from sae_lens_afa.training.checkpoint import checkpoints_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def the_run(folder: Path) -> Path:
    (run,) = (path for path in (folder / "checkpoints").iterdir() if not path.name.startswith("."))
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "sae_weights.safetensors")


def test_where_a_rank_dies_the_others_say_so_and_torchrun_goes_on(tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    job = Job(flags(tmp_path / "killed"), tmp_path / "log", restarts=1)
    job.wait_for_a_checkpoint(tmp_path / "killed" / "checkpoints")
    os.kill(job.pid_of(1), signal.SIGKILL)
    assert job.process.wait(timeout=200) == 0, job.said()
    assert job.said().count("Training SAE:   0%") == 1, "the second attempt began anew"
    assert len(checkpoints_in(the_run(tmp_path / "killed"))) == 9
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    whole = Job(flags(tmp_path / "whole"), tmp_path / "log2")
    assert whole.process.wait(timeout=200) == 0, whole.said()
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_a_restart_all_stop_and_one_process_goes_on(tmp_path):
    job = Job(flags(tmp_path), tmp_path / "log")
    job.wait_for_a_checkpoint(tmp_path / "checkpoints")
    os.kill(job.pid_of(1), signal.SIGKILL)
    killed = time.monotonic()
    assert job.process.wait(timeout=100) == 1
    assert time.monotonic() - killed < 60
    # torchrun may be quicker than the message, and end the rank with a signal.
    said = job.said()
    assert "rank 0: error: another rank has died or no longer answers" in said or "(SIGTERM)" in said
    assert "Traceback" not in said.partition("failed (exitcode")[0]
    run = the_run(tmp_path)
    newest = checkpoints_in(run)[-1]
    check_checkpoint(newest, config_from_checkpoint(newest).sae)
    InterruptibleTrainingRunner(config_from_checkpoint(run)).run()
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_a_signal_stops_all_ranks_after_the_step(tmp_path):
    job = Job(flags(tmp_path, steps=2000), tmp_path / "log")
    job.wait_for_a_checkpoint(tmp_path / "checkpoints")
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(timeout=100) != 0
    newest = checkpoints_in(the_run(tmp_path))[-1]
    assert f"training interrupted, checkpoint saved in {newest}" in job.said()
    check_checkpoint(newest, config_from_checkpoint(newest).sae)


def test_any_number_of_ranks_goes_on_where_others_stopped(tmp_path, model):
    """The losses after a checkpoint of one process are those of that process, on three ranks."""
    batch = 120  # which three can share
    alone = ranks_work.train(
        tmp_path, ranks_work.OnOne, "afa_pursuit", model, n_checkpoints=1, train_batch_size_tokens=batch,
        training_tokens=ranks_work.STEPS * batch,
    )  # fmt: skip
    found = on_ranks(3, tmp_path, "from_checkpoint")
    assert all(rank == found[0] for rank in found)
    losses = found[0]["losses"]
    assert len(losses) >= 5
    for ours, theirs in zip(losses, alone["losses"][-len(losses) :], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
