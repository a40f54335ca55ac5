"""top_afa and afa_threshold inside SAELens' runners and hooked models, on the bundled language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import wandb
from runs import HOOK, multi_runner_config, runner_config
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    HookedSAETransformer,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig

from sae_lens_afa import (
    AFAThresholdSAE,
    AFAThresholdTrainingSAE,
    AFAThresholdTrainingSAEConfig,
    TopAFASAE,
    TopAFATrainingSAE,
    TopAFATrainingSAEConfig,
)
from sae_lens_afa.demo import model_folder


def train(cfg, model, dataset) -> TopAFATrainingSAE:
    return LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()


@pytest.mark.parametrize("normalize", ["layer_norm", "none", "expected_average_only_in"])
def test_trains_in_saelens_runner_and_loads_for_inference(tmp_path, model, dataset, normalize):
    cfg = runner_config(tmp_path, sae={"normalize_activations": normalize}, n_checkpoints=1)
    trained = train(cfg, model, dataset)
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(loaded, TopAFASAE)
    x = torch.randn(3, 7, 192)
    assert torch.equal(loaded(x), trained(x))
    assert loaded.cfg.metadata.hook_name == HOOK
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    assert isinstance(TrainingSAE.load_from_disk(checkpoint), TopAFATrainingSAE)


@pytest.mark.parametrize("option", [{}, {"autocast": True}, {"prefetch_llm_batches": True}])
def test_training_lowers_the_loss_with_saelens_options_too(tmp_path, model, dataset, option):
    cfg = runner_config(tmp_path, steps=40, lr=1e-3, output_path=None, checkpoint_path=None, **option)
    runner = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset)
    x = runner.activations_store.get_activations(model.to_tokens("In the beginning God created")).flatten(0, 1)
    before = (runner.sae(x) - x).square().mean()
    sae = runner.run()
    assert (sae(x) - x).square().mean() < 0.3 * before
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(256), atol=0.05, rtol=0)


class Watched(LanguageModelSAETrainingRunner):
    """SAELens' runner, which keeps its trainer and the state in which that began."""

    def run_trainer_with_interruption_handling(self, trainer):
        self.trainer = trainer
        self.samples_before, self.decoder_before = trainer.n_training_samples, trainer.sae.W_dec.detach().clone()
        return super().run_trainer_with_interruption_handling(trainer)


def test_resumes_from_saelens_own_checkpoint(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, n_checkpoints=1)
    train(cfg, model, dataset)
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    resumed = runner_config(tmp_path / "resumed", resume_from_checkpoint=str(checkpoint))
    runner = Watched(resumed, override_model=model, override_dataset=dataset)
    sae = runner.run()
    assert runner.samples_before == int(checkpoint.name)
    assert torch.equal(runner.decoder_before, TrainingSAE.load_from_disk(checkpoint).W_dec)
    assert {int(state["step"]) for state in runner.trainer.optimizer.state.values()} == {6}
    assert torch.equal(SAE.load_from_disk(tmp_path / "resumed" / "out").W_dec, sae.W_dec)
    assert not torch.equal(sae.W_dec, runner.decoder_before)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "expected_average_only_in"])
def test_afa_threshold_trains_resumes_and_loads_for_inference(tmp_path, model, dataset, normalize):
    settings = {"threshold_warm_up_steps": 4, "normalize_activations": normalize}
    sae = AFAThresholdTrainingSAEConfig(d_in=192, d_sae=256, **settings)
    cfg = runner_config(tmp_path, n_checkpoints=1)
    cfg.sae = sae
    trained = train(cfg, model, dataset)
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(loaded, AFAThresholdSAE)
    x = torch.randn(3, 7, 192)
    assert torch.equal(loaded(x), trained(x))
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    at_checkpoint = TrainingSAE.load_from_disk(checkpoint)
    assert isinstance(at_checkpoint, AFAThresholdTrainingSAE)
    resumed = runner_config(tmp_path / "resumed", resume_from_checkpoint=str(checkpoint))
    resumed.sae = sae
    runner = LanguageModelSAETrainingRunner(resumed, override_model=model, override_dataset=dataset)
    runner.run()
    # Adam moves an entry by about its learning rate in each of the few steps: the start is not made anew.
    assert (runner.sae.b_dec - trained.b_dec).abs().max() <= 20 * cfg.lr * max(1, trained.b_dec.abs().max())


def test_metrics_reach_the_log(tmp_path, model, dataset, monkeypatch):
    logged: list[dict] = []
    monkeypatch.setattr("wandb.log", lambda data, step=None: logged.append(data))
    monkeypatch.setattr("wandb.init", lambda **_: None)
    monkeypatch.setattr("wandb.log_artifact", lambda *_, **__: None)
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    train(runner_config(tmp_path, logger=logger), model, dataset)
    steps = [entry for entry in logged if "metrics/afa_norm_ratio" in entry]
    assert len(steps) == 3
    assert {"losses/mse_loss", "losses/afa_loss", "losses/auxiliary_reconstruction_loss"} <= set(steps[0])
    assert {"metrics/afa_epsilon_lbo", "metrics/afa_frac_over_activated", "metrics/l0_std"} <= set(steps[0])
    assert all(isinstance(value, float) for name, value in steps[0].items() if name.startswith("metrics/afa"))
    assert any("ce_loss_score" in entry.get("model_performance_preservation", {}) for entry in logged)


@pytest.mark.slow
def test_logs_to_a_real_wandb_run(tmp_path, model, dataset, monkeypatch):
    wandb.teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    train(runner_config(tmp_path, logger=logger), model, dataset)
    wandb.teardown()
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = log.read_bytes()
    for name in (b"metrics/afa_norm_ratio", b"losses/afa_loss"):
        assert written.count(name) >= 3, "one for each of the logged steps"


def test_evaluations_while_training_change_nothing(tmp_path, model, dataset, monkeypatch):
    monkeypatch.setattr("wandb.log", lambda *_, **__: None)
    monkeypatch.setattr("wandb.init", lambda **_: None)
    monkeypatch.setattr("wandb.log_artifact", lambda *_, **__: None)
    found = []
    for log in (True, False):
        logger = LoggingConfig(log_to_wandb=log, wandb_log_frequency=1, eval_every_n_wandb_logs=2)
        cfg = runner_config(tmp_path / str(log), logger=logger)
        torch.manual_seed(0)
        runner = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset)
        # The evaluator would take batches from the same store: here only the switch to eval mode and back counts.
        runner.evaluator = None
        found.append(runner.run().W_dec.detach())
    assert torch.equal(*found)


def test_trains_beside_topk_and_batchtopk_on_one_forward(tmp_path, model, dataset):
    configs = {
        "afa": TopAFATrainingSAEConfig(d_in=192, d_sae=128),
        "threshold": AFAThresholdTrainingSAEConfig(d_in=192, d_sae=128),
        "topk": TopKTrainingSAEConfig(d_in=192, d_sae=128, k=8),
        "batchtopk": BatchTopKTrainingSAEConfig(d_in=192, d_sae=128, k=8),
    }
    cfg = multi_runner_config(tmp_path, configs)
    saes = MultiSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    x = torch.randn(4, 192)
    for name in ("afa", "threshold"):
        assert torch.equal(SAE.load_from_disk(tmp_path / "out" / name)(x), saes[name](x))
    (checkpoint,) = Path(cfg.checkpoint_path).iterdir()
    cfg.resume_from_checkpoint = str(checkpoint)
    resumed = MultiSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    for name, sae in resumed.items():
        # Adam moves an entry by about its learning rate in each of the few steps: the start is not made anew.
        assert (sae.W_dec - saes[name].W_dec).abs().max() <= 12 * cfg.lr
        assert not torch.equal(sae.W_dec, TrainingSAE.load_from_disk(checkpoint / name).W_dec)


@pytest.mark.parametrize(
    ("config", "saved"), [(TopAFATrainingSAEConfig, TopAFASAE), (AFAThresholdTrainingSAEConfig, AFAThresholdSAE)]
)
def test_trains_on_saelens_synthetic_data(tmp_path, config, saved):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=64, hidden_dim=16),
        sae=config(d_in=16, d_sae=64),
        training_samples=64 * 20,
        batch_size=64,
        eval_samples=256,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(tmp_path),
    )
    SyntheticSAERunner(cfg).run()
    (weights,) = tmp_path.rglob("sae_weights.safetensors")
    assert isinstance(SAE.load_from_disk(weights.parent), saved)


# ---- hooked models


@pytest.fixture(scope="module")
def sae(tmp_path_factory, model, dataset) -> TopAFASAE:
    folder = tmp_path_factory.mktemp("sae")
    train(runner_config(folder, steps=30), model, dataset)
    return SAE.load_from_disk(folder / "out")


def test_works_in_a_hooked_sae_transformer(model, sae):
    tokens = model.to_tokens("And God said, Let there be light")
    plain = model(tokens)
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    x = model.run_with_cache(tokens)[1][HOOK]
    assert torch.equal(cache[f"{HOOK}.hook_sae_acts_post"], sae.encode(x))
    with_sae = model.run_with_saes(tokens, saes=[sae])
    assert not torch.allclose(with_sae, plain, atol=1e-3)
    assert torch.equal(model(tokens), plain)


def test_with_its_error_term_the_model_is_unchanged(model, sae):
    tokens = model.to_tokens("And God said, Let there be light")
    # The reconstruction is added and subtracted once in float32: a few ulps of activations of size 10.
    torch.testing.assert_close(
        model.run_with_saes(tokens, saes=[sae], use_error_term=True), model(tokens), atol=1e-3, rtol=1e-4
    )


def test_works_at_hook_z(tmp_path, model, dataset):
    cfg = runner_config(tmp_path, hook_name="blocks.1.attn.hook_z", sae={"reshape_activations": "hook_z"})
    train(cfg, model, dataset)
    sae = SAE.load_from_disk(tmp_path / "out")
    tokens = model.to_tokens("And God saw the light")
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    assert cache["blocks.1.attn.hook_z.hook_sae_acts_post"].shape == (*tokens.shape, 256)
    assert sae(model.run_with_cache(tokens)[1]["blocks.1.attn.hook_z"]).shape == (*tokens.shape, 6, 32)


def test_works_in_a_transformer_bridge(model, sae):
    pytest.importorskip("transformer_lens.model_bridge", reason="came with TransformerLens 3")
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    bridge = SAETransformerBridge.boot_transformers(str(model_folder()), device="cpu", dtype=torch.float32)
    tokens = model.to_tokens("And God said, Let there be light")
    _, cache = bridge.run_with_cache_with_saes(tokens, saes=[sae])
    _, expected = model.run_with_cache_with_saes(tokens, saes=[sae])
    name = f"{HOOK}.hook_sae_acts_post"
    (found,) = [value for key, value in cache.items() if key.endswith("hook_sae_acts_post")]
    # Two implementations of one model: activations agree to float32 rounding.
    torch.testing.assert_close(found, expected[name], atol=1e-3, rtol=1e-3)


def test_the_model_of_the_bundle_is_hooked(model):
    assert isinstance(model, HookedSAETransformer)
    assert json.loads((model_folder() / "training.json").read_text())["held_out_cross_entropy"] < 3.3
