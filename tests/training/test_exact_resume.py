"""A run that was stopped, in whatever way, ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OURS, SAELENS, runner_config, sae_config
from safetensors.torch import load_file

from sae_lens_afa import AFAPursuitTrainingSAEConfig
from sae_lens_afa.cli.runner_flags import train_with_flags
from sae_lens_afa.demo import model_folder
from sae_lens_afa.runner import InterruptibleTrainingRunner, config_from_checkpoint
from sae_lens_afa.training.checkpoint import checkpoints_in
from sae_lens_afa.training.run_state import STREAM_FILENAME


def config(folder: Path, architecture: str, normalize: str | None = None, **overrides: Any):
    settings = {} if normalize is None else {"normalize_activations": normalize}
    sae = overrides.pop("sae", None) or sae_config(architecture, **settings)
    fields = {"steps": 10, "n_checkpoints": 2, "lr": 1e-3, "lr_decay_steps": 3, "feature_sampling_window": 4}
    return runner_config(folder, sae=sae, **{**fields, **overrides})


def finished(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "sae_weights.safetensors")


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = finished(folder), finished(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert (folder / "out/cfg.json").read_text().count("num_dead") == 1
    a, b = (load_file(where / "out" / "sparsity.safetensors")["sparsity"] for where in (folder, other))
    assert torch.equal(a, b)


def run_and_resume(tmp_path, model, data, architecture: str, **overrides: Any) -> None:
    """Let a run go through, and go on once more from each of its checkpoints."""
    cfg = config(tmp_path, architecture, **overrides)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=data).run()
    written = checkpoints_in(Path(cfg.checkpoint_path))
    assert len(written) == 2
    for checkpoint in written:
        resumed = config_from_checkpoint(checkpoint)
        resumed.output_path = str(tmp_path / checkpoint.name / "out")
        InterruptibleTrainingRunner(resumed, override_model=model, override_dataset=data).run()
        assert_same(tmp_path, tmp_path / checkpoint.name)


@pytest.mark.parametrize("architecture", [*OURS, *SAELENS])
def test_every_architecture_goes_on_as_if_it_had_not_stopped(tmp_path, model, dataset, architecture):
    run_and_resume(tmp_path, model, dataset, architecture)


@pytest.mark.parametrize(
    "option",
    [
        {"prefetch_llm_batches": True}, {"prefetch_llm_batches": 3}, {"autocast": True}, {"dtype": "bfloat16"},
        {"activations_mixing_fraction": 0.0}, {"lr_scheduler_name": "cosineannealing", "lr_end": 1e-4},
        {"lr_warm_up_steps": 4},
    ],
    ids=str,
)  # fmt: skip
def test_with_the_runners_options_too(tmp_path, model, dataset, option):
    run_and_resume(tmp_path, model, dataset, "afa_pursuit", **option)


@pytest.mark.parametrize("normalize", ["expected_average_only_in", "covariance_whitening"])
def test_with_statistics_of_the_input(tmp_path, model, dataset, normalize):
    run_and_resume(tmp_path, model, dataset, "batchtopk", normalize=normalize)


def test_over_several_epochs_of_a_stream(tmp_path, model, dataset):
    run_and_resume(tmp_path, model, dataset.select(range(3)).to_iterable_dataset(), "afa_pursuit", steps=40)


ARGS = [
    "--architecture", "afa_pursuit", "--d_in", "192", "--d_sae", "256", "--reseed-steps", "2",
    "--model_name", str(model_folder()), "--hook_name", "blocks.1.hook_resid_pre", "--dataset_path", "text.txt",
    "--context_size", "32", "--training_tokens", str(128 * 300), "--train_batch_size_tokens", "128",
    "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "8", "--n_checkpoints", "20", "--streaming", "False",
]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, dataset, number):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("text.txt").write_text("\n\n".join(dataset["text"]), encoding="utf-8")
    command = [sys.executable, "-m", "sae_lens_afa.cli", "train", *ARGS]
    kept = Path("killed")
    process = subprocess.Popen(
        [*command, "--checkpoint_path", str(kept), "--output_path", "killed/out", "--keep-checkpoints", "3"],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(kept.glob("*/[0-9]*")):
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.wait()
    assert not Path("killed/out").exists()
    (run,) = (path for path in kept.iterdir() if path.name != "out")
    assert 1 <= len(checkpoints_in(run)) <= 3
    again = [*command[:4], "--resume-from-checkpoint", str(run), "--keep-checkpoints", "3"]
    subprocess.run(again, check=True, capture_output=True)
    assert len(checkpoints_in(run)) == 3
    whole = [*command, "--checkpoint_path", "whole", "--output_path", "whole/out"]
    subprocess.run(whole, check=True, capture_output=True)
    assert_same(Path("whole"), kept)


def test_the_settings_of_the_run_itself_resume_it_too(tmp_path, model, dataset):
    """What a configuration leaves to the length of the run (growth_steps) is set as it was then."""
    made, again = (config(tmp_path, "topk", sae=AFAPursuitTrainingSAEConfig(d_in=192, d_sae=256)) for _ in range(2))
    InterruptibleTrainingRunner(made, override_model=model, override_dataset=dataset).run()
    again.resume_from_checkpoint, again.output_path = made.checkpoint_path, str(tmp_path / "again" / "out")
    InterruptibleTrainingRunner(again, override_model=model, override_dataset=dataset).run()
    assert_same(tmp_path, tmp_path / "again")


def test_only_the_newest_checkpoints_are_kept(tmp_path, model, dataset):
    cfg = config(tmp_path, "topk", n_checkpoints=4, save_final_checkpoint=True)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset, keep_checkpoints=2).run()
    assert [path.name for path in checkpoints_in(Path(cfg.checkpoint_path))] == ["1152", "final_1280"]
    assert sorted(path.name for path in Path(cfg.checkpoint_path).iterdir()) == ["1152", "final_1280"]
    with pytest.raises(ValueError, match="keep_checkpoints must be at least 1, or None to keep all, got 0"):
        InterruptibleTrainingRunner(config(tmp_path / "b", "topk"), override_model=model, keep_checkpoints=0)
    with pytest.raises(ValueError, match="--keep_checkpoints needs a number of checkpoints, got 'few'"):
        train_with_flags(["--keep-checkpoints=few"])


def test_a_checkpoint_of_saelens_alone_says_that_it_is_not_exact(tmp_path, model, dataset):
    cfg = config(tmp_path, "topk", n_checkpoints=1)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    (checkpoint,) = checkpoints_in(Path(cfg.checkpoint_path))
    (checkpoint / STREAM_FILENAME).unlink()
    resumed = config_from_checkpoint(checkpoint)
    with pytest.warns(UserWarning, match="goes on with other batches"):
        InterruptibleTrainingRunner(resumed, override_model=model, override_dataset=dataset).run()


def test_a_damaged_state_is_named(tmp_path, model, dataset):
    cfg = config(tmp_path, "topk", n_checkpoints=1)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    (checkpoint,) = checkpoints_in(Path(cfg.checkpoint_path))
    state = checkpoint / STREAM_FILENAME
    state.write_bytes(state.read_bytes()[:1000])
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"resume_from_checkpoint: .*{STREAM_FILENAME} is damaged"):
        InterruptibleTrainingRunner(
            config_from_checkpoint(checkpoint), override_model=model, override_dataset=dataset
        ).run()
