"""AFA metrics in what SAELens' own runners log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import wandb
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa import AFAEvaluator, TopAFATrainingSAEConfig, evaluate_activations
from sae_lens_afa.evals.synthetic import AFASyntheticSAERunner

HOOK, D_SAE, BATCH = "blocks.1.hook_resid_pre", 64, 128


@pytest.fixture
def logged(monkeypatch, tmp_path) -> Iterator[list[dict]]:
    """Collect what is sent to wandb, which writes to a folder that goes away."""
    calls = []
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = wandb.Run.log  # wandb.init makes wandb.log of it
    monkeypatch.setattr(wandb.Run, "log", lambda run, data, **options: calls.append(data) or log(run, data, **options))
    yield calls
    wandb.finish()


def logging() -> LoggingConfig:
    return LoggingConfig(log_to_wandb=True, wandb_log_frequency=1, eval_every_n_wandb_logs=2)


def sized(config, **options):
    return config(d_in=192, d_sae=D_SAE, **options)


def assert_afa(log: dict, prefix: str = "") -> None:
    assert log[f"{prefix}afa/n_tokens"] == BATCH
    assert log[f"{prefix}afa/norm_ratio_median"] > 0
    assert log[f"{prefix}afa/centered_epsilon_lbo_median"] >= 0
    assert log[f"{prefix}afa/explained_variance"] <= 1
    assert all(value is not None for value in log.values())


@pytest.mark.filterwarnings("ignore")
def test_in_the_language_model_runner(model, dataset, logged, tmp_path):
    cfg = LanguageModelSAERunnerConfig(
        sae=sized(TopAFATrainingSAEConfig), model_name="kjv", hook_name=HOOK, dataset_path="",
        context_size=32, n_batches_in_buffer=8, store_batch_size_prompts=4, train_batch_size_tokens=BATCH,
        training_tokens=4 * BATCH, n_eval_batches=1, eval_batch_size_prompts=2, streaming=False, verbose=False,
        logger=logging(), output_path=None, checkpoint_path=str(tmp_path), n_checkpoints=0,
    )  # fmt: skip
    runner = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=dataset)
    runner.evaluator = AFAEvaluator(runner.evaluator)
    runner.run()
    evals = [log for log in logged if "afa/n_tokens" in log]
    assert len(evals) == 2
    for log in evals:
        assert_afa(log)
        assert log["model_performance_preservation"]["ce_loss_score"] <= 1  # what the wrapped evaluator says


@pytest.mark.filterwarnings("ignore")
def test_in_the_multi_sae_runner(model, dataset, logged, tmp_path):
    cfg = MultiSAETrainingRunnerConfig(
        saes={
            "a": sized(TopKTrainingSAEConfig, k=8),
            "b": sized(StandardTrainingSAEConfig),
        },
        hook_names={"a": HOOK, "b": "blocks.2.hook_resid_pre"}, model_name="kjv", dataset_path="",
        context_size=32, n_batches_in_buffer=8, store_batch_size_prompts=4,
        train_batch_size_tokens=BATCH, training_tokens=2 * BATCH, n_eval_batches=1, eval_batch_size_prompts=2,
        streaming=False, logger=logging(), output_path=str(tmp_path / "out"),
        checkpoint_path=str(tmp_path), n_checkpoints=0, evaluator=AFAEvaluator(),
    )  # fmt: skip
    MultiSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
    (log,) = [log for log in logged if "a/afa/n_tokens" in log]
    for name in "ab":
        assert_afa(log, f"{name}/")
        assert any(key.startswith(f"{name}/model_performance") for key in log)
    assert log["a/afa/l0_mean"] <= 8


@pytest.mark.filterwarnings("ignore")
def test_in_the_synthetic_runner(logged, tmp_path):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=16),
        sae=StandardTrainingSAEConfig(d_in=16, d_sae=32, normalize_activations="expected_average_only_in"),
        training_samples=4 * BATCH, batch_size=BATCH, eval_frequency=2, eval_samples=256, run_final_eval=False,
        n_batches_for_norm_estimate=2, logger=logging(), output_path=None, checkpoint_path=None,
    )  # fmt: skip
    AFASyntheticSAERunner(cfg).run()
    evals = [log for log in logged if "afa/n_tokens" in log]
    assert evals
    for log in evals:
        assert_afa(log)
        assert "synthetic/mcc" in log


# ---- on its own


@pytest.fixture
def sae() -> StandardTrainingSAE:
    return StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=16))


def test_it_takes_as_many_batches_as_it_is_told(sae):
    batches = [torch.randn(5, 8) for _ in range(4)]
    stream = iter(batches)
    log = AFAEvaluator(n_batches=3)(sae, stream, ActivationScaler())
    expected = evaluate_activations(sae, batches[:3])
    assert log == {f"afa/{name}": value for name, value in expected.to_dict().items() if value is not None}
    assert next(stream) is batches[3]


def test_held_out_activations_take_nothing_from_the_stream(sae):
    held_out = torch.randn(7, 8)
    log = AFAEvaluator(activations=held_out)(sae, iter([]), ActivationScaler(scaling_factor=2.0))
    scaled = evaluate_activations(sae, 2 * held_out)
    assert log["afa/norm_ratio_median"] == pytest.approx(scaled.norm_ratio_median)


def test_the_base_evaluator_gets_its_arguments_and_keeps_its_metrics(sae):
    seen = []

    def base(*arguments):
        seen.append(arguments)
        return {"mine": 1.0}

    stream, scaler = iter([torch.randn(5, 8)]), ActivationScaler()
    log = AFAEvaluator(base)(sae, stream, scaler)
    assert seen == [(sae, stream, scaler)]
    assert log["mine"] == 1.0
    assert log["afa/n_tokens"] == 5


def test_a_diverged_sae_does_not_end_the_run(sae):
    sae.W_dec.data.fill_(torch.nan)
    log = AFAEvaluator()(sae, iter([torch.randn(5, 8)]), ActivationScaler())
    assert log == {"afa/n_tokens": 0, "afa/n_nonfinite": 5, "afa/d_sae": 16}


def test_tokens_with_nan_are_logged_apart(sae):
    held_out = torch.randn(7, 8)
    log = AFAEvaluator(activations=torch.cat([held_out, torch.full((2, 8), torch.nan)]))(
        sae, iter([]), ActivationScaler()
    )
    clean = AFAEvaluator(activations=held_out)(sae, iter([]), ActivationScaler())
    assert log == pytest.approx({**clean, "afa/n_nonfinite": 2})


def test_activations_that_require_grad_are_judged_as_they_are(sae):
    held_out = torch.randn(7, 8)
    for change in (lambda x: x.requires_grad_(), lambda x: x.requires_grad_() * 1):
        log = AFAEvaluator(activations=change(held_out.clone()))(sae, iter([]), ActivationScaler())
        assert log == AFAEvaluator(activations=held_out)(sae, iter([]), ActivationScaler())


def test_no_batches_is_refused():
    with pytest.raises(ValueError, match="n_batches must be at least 1"):
        AFAEvaluator(n_batches=0)
