"""mutual_choice and feature_choice in SAELens' runners, through both phases and resumed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from choice_helpers import l0
from datasets import Dataset
from runs import HOOK, multi_runner_config, runner_config
from sae_lens import (
    SAE,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    TrainingSAE,
)
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig

from sae_lens_afa import FeatureChoiceTrainingSAEConfig, MutualChoiceTrainingSAEConfig, evaluate_activations
from sae_lens_afa.cli import main
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.runner import InterruptibleTrainingRunner

CONFIGS = {
    "mutual_choice": (MutualChoiceTrainingSAEConfig, {"density_lr": 0.25}),
    "feature_choice": (FeatureChoiceTrainingSAEConfig, {}),
    "feature_choice zipf": (
        FeatureChoiceTrainingSAEConfig,
        {"prior": "zipf", "feature_choice_start_step": 5, "density_lr": 0.25},
    ),
}
ALL = pytest.mark.parametrize("name", CONFIGS)


def sae_config(name: str, **overrides):
    config, settings = CONFIGS[name]
    return config(**{"d_in": 192, "d_sae": 256, "k": 8, **settings, **overrides})


def unmixed_config(tmp_path: Path, sae, **overrides):
    """A run without a mixing buffer, so that a resumed one sees the batches that it would have seen."""
    settings = {"activations_mixing_fraction": 0.0, "lr": 1e-3, **overrides}
    return runner_config(tmp_path, steps=12, sae=sae, **settings)


@ALL
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "expected_average_only_in"])
def test_trains_in_the_language_model_runner_and_loads_as_jumprelu(tmp_path, model, dataset, name, normalize):
    cfg = unmixed_config(tmp_path, sae_config(name, normalize_activations=normalize))
    trained = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(loaded, JumpReLUSAE)
    assert loaded.cfg.metadata.training_architecture == name.split()[0]
    x = model.run_with_cache(model.to_tokens("In the beginning God created the heaven"))[1][HOOK]
    torch.testing.assert_close(loaded(x), trained.eval()(x), atol=1e-4, rtol=1e-4)
    assert l0(loaded.encode(x)) > 0


@pytest.fixture(scope="module")
def rows(model, dataset) -> Dataset:
    """Text in rows of just one context: SAELens resumes at a row, and what it has read of it is lost."""
    tokens = torch.cat([model.to_tokens(text)[0] for text in dataset["text"]])
    return Dataset.from_dict({"tokens": tokens[: len(tokens) // 32 * 32].view(-1, 32).tolist()})


@pytest.mark.parametrize("runner", [LanguageModelSAETrainingRunner, InterruptibleTrainingRunner])
@pytest.mark.parametrize("name", ["mutual_choice", "feature_choice zipf"])
def test_a_run_resumed_in_either_phase_continues_as_if_not_interrupted(tmp_path, model, rows, name, runner):
    whole_cfg = unmixed_config(tmp_path / "whole", sae_config(name), n_checkpoints=3, is_dataset_tokenized=True)
    whole = runner(whole_cfg, override_model=model, override_dataset=rows).run()
    checkpoints = sorted(Path(whole_cfg.checkpoint_path).iterdir(), key=lambda path: int(path.name))
    # Checkpoints are after 4, 7 and 10 batches; Feature Choice starts with the sixth.
    assert [int(path.name) // 128 for path in checkpoints] == [4, 7, 10]
    assert len(TrainingSAE.load_from_disk(checkpoints[0]).zipf_law) == 3
    for checkpoint in checkpoints:
        cfg = unmixed_config(
            tmp_path / checkpoint.name,
            sae_config(name),
            is_dataset_tokenized=True,
            resume_from_checkpoint=str(checkpoint),
        )
        resumed = runner(cfg, override_model=model, override_dataset=rows).run()
        for key, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), (checkpoint.name, key)


@ALL
def test_figures_reach_the_log(tmp_path, model, dataset, monkeypatch, name):
    logged: list[dict] = []
    monkeypatch.setattr("wandb.log", lambda data, step=None: logged.append(data))
    monkeypatch.setattr("wandb.init", lambda **_: None)
    monkeypatch.setattr("wandb.log_artifact", lambda *_, **__: None)
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=4, eval_every_n_wandb_logs=3)
    cfg = unmixed_config(tmp_path, sae_config(name), logger=logger)
    LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    last = [entry for entry in logged if "metrics/unused_matches" in entry][-1]
    assert last["metrics/unused_matches"] == 8 * 128 - round(last["metrics/l0"] * 128)
    assert {"metrics/under_used_features", "metrics/zipf_exponent", "metrics/zipf_offset"} <= set(last)
    assert any("ce_loss_score" in entry.get("model_performance_preservation", {}) for entry in logged)


def test_trains_beside_each_other_on_one_forward(tmp_path, model, dataset):
    cfg = multi_runner_config(tmp_path, {name: sae_config(name) for name in CONFIGS}, steps=12)
    saes = MultiSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    x = torch.randn(40, 192)
    for name, sae in saes.items():
        loaded = SAE.load_from_disk(tmp_path / "out" / name)
        torch.testing.assert_close(loaded(x), sae.eval()(x), atol=1e-4, rtol=1e-4)
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    cfg.resume_from_checkpoint = str(checkpoint)
    MultiSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()


@pytest.mark.slow
@ALL
def test_trains_on_saelens_synthetic_data_and_finds_as_many_features_on_new_data(tmp_path, name):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=64, hidden_dim=24, std_firing_magnitudes=0.2, bias=False),
        sae=sae_config(name, d_in=24, d_sae=64, k=3, density_lr=0.05, feature_choice_start_step=100)
        if "zipf" in name
        else sae_config(name, d_in=24, d_sae=64, k=3),
        training_samples=128 * 800,
        batch_size=128,
        lr=1e-3,
        lr_decay_steps=200,
        eval_samples=10_000,
        feature_sampling_window=100,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(tmp_path),
    )
    result = SyntheticSAERunner(cfg).run()
    assert result.final_eval.sae_l0 == pytest.approx(result.sae.cfg.metadata.l0, rel=0.1)
    assert result.final_eval.explained_variance > 0.5
    assert isinstance(SAE.load_from_disk(tmp_path), JumpReLUSAE)


@pytest.mark.parametrize("name", ["mutual_choice", "feature_choice zipf"])
def test_works_at_hook_z_and_in_a_hooked_model(tmp_path, model, dataset, name):
    hook = "blocks.1.attn.hook_z"
    cfg = unmixed_config(tmp_path, sae_config(name, reshape_activations="hook_z"), hook_name=hook)
    LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    sae = SAE.load_from_disk(tmp_path / "out")
    tokens = model.to_tokens("And God saw the light")
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    assert cache[f"{hook}.hook_sae_acts_post"].shape == (*tokens.shape, 256)
    assert sae(model.run_with_cache(tokens)[1][hook]).shape == (*tokens.shape, 6, 32)


@ALL
def test_is_judged_while_it_trains_and_once_it_is_saved(tmp_path, model, dataset, name):
    cfg = unmixed_config(tmp_path, sae_config(name))
    trained = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    x = torch.randn(512, 192)
    # A training SAE's activations carry the decoder norm, those of what is saved do not: the figures agree.
    ours = evaluate_activations(trained.eval(), x).to_dict()
    saved = evaluate_activations(SAE.load_from_disk(tmp_path / "out"), x).to_dict()
    for figure in ("l0_mean", "explained_variance", "norm_ratio_median", "epsilon_lbo_median"):
        assert ours[figure] == pytest.approx(saved[figure], rel=1e-3), figure


def test_the_command_line_takes_the_fields_as_flags():
    flags = ["--model_name", "gpt2", "--d_in", "768", "--d_sae", "1024", "--k", "12.5", "--dying_fraction", "0.2"]
    cfg = _parse_cfg_args(["--architecture", "mutual_choice", *flags]).sae
    assert isinstance(cfg, MutualChoiceTrainingSAEConfig)
    assert (cfg.k, cfg.dying_fraction) == (12.5, 0.2)
    zipf = ["--prior", "zipf", "--zipf_exponent", "1.1", "--zipf_offset", "3", "--feature_choice_start_step", "0"]
    cfg = _parse_cfg_args(["--architecture", "feature_choice", *flags, *zipf]).sae
    assert isinstance(cfg, FeatureChoiceTrainingSAEConfig)
    assert (cfg.k, cfg.prior, cfg.zipf_exponent, cfg.zipf_offset) == (12.5, "zipf", 1.1, 3.0)
    fitted = _parse_cfg_args(
        ["--architecture", "feature_choice", *flags, "--prior", "zipf", "--feature_choice_start_step", "100"]
    ).sae
    assert (fitted.zipf_exponent, fitted.feature_choice_start_step) == (None, 100)


def test_the_command_trains_and_saves(tmp_path, monkeypatch):
    rows = (json.dumps({"text": chapter}) for chapter in load_text().train[:60])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(rows))
    flags = {
        "architecture": "feature_choice", "d_in": 192, "d_sae": 256, "k": 7.5, "prior": "zipf", "density_lr": 0.25,
        "feature-choice-start-step": 4, "model_name": model_folder(), "hook_name": HOOK,
        "dataset_path": tmp_path / "text", "is_dataset_tokenized": False, "streaming": False, "context_size": 32,
        "training_tokens": 1024, "train_batch_size_tokens": 128, "n_batches_in_buffer": 8, "log_to_wandb": False,
        "store_batch_size_prompts": 4, "output_path": tmp_path / "out", "checkpoint_path": tmp_path / "checkpoints",
    }  # fmt: skip
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["sae-lens-afa", "train", *arguments])
    with contextlib.suppress(SystemExit):
        main()
    saved = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(saved, JumpReLUSAE)
    details = saved.cfg.metadata.training_architecture_details
    assert (details["k"], details["prior"], details["feature_choice_start_step"]) == (7.5, "zipf", 4)
    assert saved.threshold.unique().numel() > 100
