"""The watch over a run: values that are not finite, the bar, the seed, whole checkpoints, and a summary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from runs import runner_config
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from tqdm import tqdm

from sae_lens_afa import AFAThresholdTrainingSAEConfig, MutualChoiceTrainingSAEConfig, TopAFATrainingSAEConfig
from sae_lens_afa.loading.saes import load_sae
from sae_lens_afa.runner import InterruptibleTrainingRunner, TrainingDivergedError


def poisoned(step: int, what: str):
    """A runner whose weights or loss are spoilt at one step."""

    class Poisoned(InterruptibleTrainingRunner):
        def run_trainer_with_interruption_handling(self, trainer):
            take = trainer.step

            def spoilt(batch):
                if trainer.n_training_steps == step and what == "input":
                    batch = batch * torch.nan
                out = take(batch)
                if trainer.n_training_steps == step and what == "weights":
                    trainer.sae.W_dec.data[0, 0] = torch.inf
                return out

            trainer.step = spoilt
            return super().run_trainer_with_interruption_handling(trainer)

    return Poisoned


@pytest.mark.parametrize("what", ["input", "weights"])
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, model, dataset, what):
    cfg = runner_config(tmp_path, steps=12, n_checkpoints=3)
    runner = poisoned(6, what)(cfg, override_model=model, override_dataset=dataset)
    with pytest.raises(
        TrainingDivergedError, match=r"not finite at step [67], so nothing is saved; .*Lower lr"
    ) as told:
        runner.run()
    assert "\n" not in str(told.value)
    kept = sorted(Path(cfg.checkpoint_path).iterdir(), key=lambda path: int(path.name))
    assert told.value.checkpoint == kept[-1]
    assert all(weight.isfinite().all() for path in kept for weight in load_sae(path).parameters())
    assert not (tmp_path / "out").exists()


def test_weights_spoilt_by_the_very_last_step_are_not_saved(tmp_path, model, dataset):
    runner = poisoned(5, "weights")(runner_config(tmp_path), override_model=model, override_dataset=dataset)
    with pytest.raises(TrainingDivergedError, match=r"W_dec is not finite .* there is no checkpoint before it"):
        runner.run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [TopAFATrainingSAEConfig, AFAThresholdTrainingSAEConfig, TopKTrainingSAEConfig])
def test_float16_that_overflows_says_what_to_take_instead(tmp_path, model, dataset, config):
    cfg = runner_config(tmp_path, steps=20, dtype="float16")
    options = {"threshold_warm_up_steps": 2} if config is AFAThresholdTrainingSAEConfig else {}
    cfg.sae = config(d_in=192, d_sae=64, dtype="float16", **({"k": 4} if config is TopKTrainingSAEConfig else options))
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    with pytest.raises(TrainingDivergedError, match=r"float16 overflows in training .* float32 or bfloat16"):
        runner.run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config", [TopAFATrainingSAEConfig, AFAThresholdTrainingSAEConfig, MutualChoiceTrainingSAEConfig]
)
def test_a_seed_decides_the_weights(tmp_path, model, dataset, config):
    found = []
    for i, seed in enumerate((1, 1, 2)):
        torch.rand(i)  # what was drawn before does not count
        options = {"threshold_warm_up_steps": 2} if config is AFAThresholdTrainingSAEConfig else {}
        options |= {"k": 4} if config is MutualChoiceTrainingSAEConfig else {}
        cfg = runner_config(tmp_path, seed=seed, output_path=None, dead_feature_window=1)
        cfg.sae = config(d_in=192, d_sae=64, **options)
        found.append(InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run().W_dec)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=0.01)


def test_the_bar_moves_every_step_and_names_the_sae(tmp_path, model, dataset, monkeypatch):
    seen: list[tuple[int, str]] = []
    update = tqdm.update

    def noted(self, n=1):
        done = update(self, n)
        seen.append((self.n, self.desc))
        return done

    monkeypatch.setattr(tqdm, "update", noted)
    cfg = runner_config(tmp_path, steps=5)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    moves = [(n, name) for n, name in seen if "top_afa" in name]
    assert [n for n, _ in moves] == [128, 256, 384, 512, 640]
    assert all(name.startswith("top_afa 256") for _, name in moves)


def test_the_summary_says_what_came_out_and_how_to_go_on(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, steps=20)
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    with pytest.raises(RuntimeError, match="call it after that"):
        runner.summary()
    sae = runner.run()
    summary = runner.summary()
    assert summary.result.n_tokens == 20 * 128
    activations = torch.cat([next(runner.activations_store) for _ in range(4)])
    l0 = (SAE.load_from_disk(tmp_path / "out").encode(activations) > 0).sum(-1).float().mean()
    assert summary.result.l0_mean == pytest.approx(float(l0), rel=0.2)  # of other tokens of the same text
    assert summary.n_silent == sae.cfg.d_sae - int((runner._watch.trainer.act_freq_scores > 0).sum())
    text = str(summary)
    for part in (
        "top_afa, trained",
        "5-95 % of tokens",
        "explained variance",
        "silent in the last 2,560 tokens",
        "time",
    ):
        assert part in text
    assert f'SAE.load_from_disk("{tmp_path / "out"}")' in text
    assert f"sae-lens-afa eval --sae {tmp_path / 'out'}" in text


# ---- when the end goes wrong


@pytest.mark.parametrize("checkpoints", [True, False])
def test_an_output_that_fails_at_the_end_loses_nothing(tmp_path, model, dataset, checkpoints, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    cfg = runner_config(tmp_path, steps=2, output_path=str(tmp_path / "gone" / "sae"))
    if not checkpoints:
        cfg.checkpoint_path = None
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    (tmp_path / "gone").write_text("a file where the folder was to be")
    with pytest.raises(
        OSError, match=r"sae cannot be written \(.*\); the trained SAE was saved in (\S+) instead"
    ) as told:
        runner.run()
    place = Path(str(told.value).partition("saved in ")[2].partition(" instead")[0])
    assert place.is_relative_to(cfg.checkpoint_path if checkpoints else tmp_path / "tmp")
    assert torch.equal(SAE.load_from_disk(place).W_dec, runner.sae.W_dec)
    shutil.rmtree(place)


def test_a_failure_everywhere_says_so(tmp_path, model, dataset, monkeypatch):
    cfg = runner_config(tmp_path, steps=2)
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_lens.saes.sae.TrainingSAE.save_inference_model", full)
    with pytest.raises(OSError, match=r"No space left on device.*nor any other place: it is lost"):
        runner.run()
    assert sorted(path.name for path in tmp_path.iterdir()) in (["checkpoints"], [])


def test_the_trainer_of_saelens_is_not_patched():
    assert SAETrainer._update_pbar.__module__ == "sae_lens.training.sae_trainer"


def test_a_checkpoint_appears_whole(tmp_path, model, dataset, monkeypatch):
    cfg = runner_config(tmp_path, steps=4, n_checkpoints=1)
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)

    def killed(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "save_checkpoint", killed)  # the last of its files
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert not list(Path(cfg.checkpoint_path).iterdir())
    leftover = Path(cfg.checkpoint_path) / ".384.partial"  # where the process is killed and cannot tidy up
    leftover.mkdir()
    (leftover / "cfg.json").write_text("{")
    again = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    again.run()
    assert [path.name for path in Path(cfg.checkpoint_path).iterdir()] == ["384"]
