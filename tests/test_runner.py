"""Interruption, resumption and the checks that come before training."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from runs import HOOK, runner_config
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.constants import RUNNER_CFG_FILENAME, TRAINER_STATE_FILENAME
from safetensors.torch import load_file

from sae_lens_afa.demo import model_folder
from sae_lens_afa.runner import (
    InterruptibleTrainingRunner,
    TrainingInterrupted,
    check_checkpoint,
    check_hook,
    config_from_checkpoint,
)


class Interrupting(InterruptibleTrainingRunner):
    """Sends itself a signal while step `at` is under way."""

    at = 3
    signals = (signal.SIGINT,)

    def run_trainer_with_interruption_handling(self, trainer):
        step = trainer.step

        def step_with_signal(batch):
            out = step(batch)
            if trainer.n_training_steps == self.at:
                for number in self.signals:
                    os.kill(os.getpid(), number)
            return out

        trainer.step = step_with_signal
        self.trainer = trainer
        return super().run_trainer_with_interruption_handling(trainer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves_a_whole_checkpoint(tmp_path, model, dataset, number, capsys):
    cfg = runner_config(tmp_path, steps=10)
    runner = Interrupting(cfg, override_model=model, override_dataset=dataset)
    runner.signals = (number,)
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match="checkpoint saved in") as stopped:
        runner.run()
    assert signal.getsignal(number) == before
    assert "stopping after this step" in capsys.readouterr().err
    checkpoint = stopped.value.checkpoint
    assert checkpoint == Path(cfg.checkpoint_path) / "512"  # steps 0 to 3, each of 128 tokens
    assert [p.name for p in checkpoint.parent.iterdir()] == ["512"]
    check_checkpoint(checkpoint, cfg.sae)
    state = torch.load(checkpoint / TRAINER_STATE_FILENAME)
    assert (state["n_training_steps"], state["n_training_samples"]) == (4, 512)
    assert len(state["optimizer"]["state"]) == 3
    assert not (tmp_path / "out").exists()


def test_a_second_signal_stops_at_once(tmp_path, model, dataset):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cfg = runner_config(tmp_path, steps=10)
    runner = Interrupting(cfg, override_model=model, override_dataset=dataset)
    runner.signals = (signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert not Path(cfg.checkpoint_path).exists()


def test_without_a_checkpoint_path_it_says_that_nothing_was_saved(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, steps=10, checkpoint_path=None)
    with pytest.raises(TrainingInterrupted, match="no checkpoint saved") as stopped:
        Interrupting(cfg, override_model=model, override_dataset=dataset).run()
    assert stopped.value.checkpoint is None


def test_an_interrupted_run_is_continued_to_its_end(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, steps=10, n_checkpoints=4)
    interrupted = Interrupting(cfg, override_model=model, override_dataset=dataset)
    with pytest.raises(TrainingInterrupted) as stopped:
        interrupted.run()
    resumed_cfg = config_from_checkpoint(stopped.value.checkpoint)
    assert resumed_cfg.sae.to_dict() == cfg.sae.to_dict()
    runner = Interrupting(resumed_cfg, override_model=model, override_dataset=dataset)
    runner.at = -1
    runner.run()
    trainer = runner.trainer
    assert (trainer.n_training_steps, trainer.n_training_samples) == (10, 1280)
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {10}  # Adam's own count went on too
    assert SAE.load_from_disk(tmp_path / "out").W_dec.isfinite().all()
    # Regular checkpoints at the first step past 256, 512, 768 and 1024 tokens, each written once, and the forced one.
    assert sorted(int(p.name) for p in Path(cfg.checkpoint_path).iterdir()) == [384, 512, 640, 896, 1152]


def test_resumed_weights_are_those_of_the_checkpoint(tmp_path, model, dataset):
    with pytest.raises(TrainingInterrupted) as stopped:
        Interrupting(runner_config(tmp_path, steps=10), override_model=model, override_dataset=dataset).run()
    saved = InterruptibleTrainingRunner(
        config_from_checkpoint(stopped.value.checkpoint), override_model=model, override_dataset=dataset
    )
    saved.cfg.output_path = None
    seen = {}

    def look(trainer):
        seen.update(trainer.sae.train().state_dict())
        return trainer.sae

    saved.run_trainer_with_interruption_handling = look
    saved.run()
    on_disk = load_file(stopped.value.checkpoint / "sae_weights.safetensors")
    assert all(torch.equal(seen[name], on_disk[name]) for name in on_disk)


def test_output_replaces_an_earlier_one_whole_and_only_where_it_may(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, steps=2)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match="out exists; pass overwrite=True"):
        InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "demo_result.json").write_text("of the old one")
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset, overwrite=True).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "cfg.json",
        "runner_cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }


def test_a_model_folder_is_loaded_as_hooked_transformer(tmp_path, dataset):
    cfg = runner_config(tmp_path, steps=1, model_name=str(model_folder()))
    InterruptibleTrainingRunner(cfg, override_dataset=dataset).run()
    assert (tmp_path / "out" / "cfg.json").is_file()


# ---- checks before training


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, model, dataset) -> Path:
    cfg = runner_config(tmp_path_factory.mktemp("interrupted"), steps=10)
    with pytest.raises(TrainingInterrupted) as stopped:
        Interrupting(cfg, override_model=model, override_dataset=dataset).run()
    return stopped.value.checkpoint


@pytest.fixture
def checkpoint(tmp_path, interrupted) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(interrupted, tmp_path / "checkpoints" / interrupted.name)


@pytest.mark.parametrize("name", ["cfg.json", "trainer_state.pt", "sae_weights.safetensors", RUNNER_CFG_FILENAME])
def test_an_incomplete_checkpoint_names_what_is_missing(tmp_path, checkpoint, model, name):
    (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"resume_from_checkpoint: .*has no {name}"):
        InterruptibleTrainingRunner(runner_config(tmp_path, resume_from_checkpoint=str(checkpoint)))


def test_a_checkpoint_of_another_configuration_names_the_fields(tmp_path, checkpoint):
    cfg = runner_config(tmp_path, sae={"d_sae": 300, "k_aux": 7}, resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match=r"d_sae is 256 there and 300 here.*k_aux is 512 there and 7 here"):
        InterruptibleTrainingRunner(cfg)
    with pytest.raises(ValueError, match="architecture is 'top_afa' there and 'topk' here"):
        check_checkpoint(checkpoint, TopKTrainingSAEConfig(d_in=192, d_sae=256))


def test_a_missing_folder_is_named(tmp_path):
    for field in ("resume_from_checkpoint", "from_pretrained_path"):
        with pytest.raises(FileNotFoundError, match=f"{field}: .*nowhere is not a folder"):
            InterruptibleTrainingRunner(runner_config(tmp_path, **{field: str(tmp_path / "nowhere")}))
    with pytest.raises(FileNotFoundError, match=r"has no runner_cfg\.json"):
        config_from_checkpoint(tmp_path)


def test_a_folder_without_cfg_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"from_pretrained_path: .*has no cfg\.json"):
        InterruptibleTrainingRunner(runner_config(tmp_path, from_pretrained_path=str(tmp_path)))


def test_the_width_of_the_hook_is_compared_with_d_in(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, sae={"d_in": 100})
    with pytest.raises(ValueError, match=rf"d_in is 100, but activations at {HOOK} are 192 wide"):
        InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)


def test_an_unknown_hook_lists_near_ones(model):
    with pytest.raises(ValueError, match=r"no hook 'blocks\.1\.hook_resid_pr'.*blocks\.1\.hook_resid_pre"):
        check_hook(model, "blocks.1.hook_resid_pr", 192)


def test_heads_are_joined_or_taken_one_at_a_time(model):
    check_hook(model, "blocks.0.attn.hook_z", 192)
    check_hook(model, "blocks.0.attn.hook_z", 32, head_index=2)
    with pytest.raises(ValueError, match="32 wide"):
        check_hook(model, "blocks.0.attn.hook_z", 192, head_index=2)
