"""A run from its text to its metrics: names of data and models mean the same for training, judging and exporting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens import SAE, BatchTopKTrainingSAEConfig, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa import (
    FeatureChoiceTrainingSAEConfig,
    MutualChoiceTrainingSAEConfig,
    TopAFATrainingSAEConfig,
    evaluate_activations,
)
from sae_lens_afa.cli.runner_flags import train_with_flags
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.hub import load_saes
from sae_lens_afa.interop import export_to_folder
from sae_lens_afa.reports import EvalReport, evaluate_saes
from sae_lens_afa.runner import InterruptibleTrainingRunner

HOOK = "blocks.1.hook_resid_pre"
CHAPTERS = load_text().train[:12]
SETTINGS = {
    "model_name": str(model_folder()), "hook_name": HOOK, "context_size": 32, "training_tokens": 768,
    "train_batch_size_tokens": 128, "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "verbose": False,
    "n_batches_for_norm_estimate": 2, "output_path": "sae",
}  # fmt: skip
CONFIGS = {
    "top_afa": TopAFATrainingSAEConfig,
    "mutual_choice": MutualChoiceTrainingSAEConfig,
    "feature_choice": FeatureChoiceTrainingSAEConfig,
    "batchtopk": BatchTopKTrainingSAEConfig,
}


def flags(**options) -> list[str]:
    """A small run on the bundled model; `options` are flags."""
    settings = {"architecture": "top_afa", "d_in": 192, "d_sae": 64, "log_to_wandb": "false", **SETTINGS, **options}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def train(sae: TrainingSAEConfig | None = None, **options) -> InterruptibleTrainingRunner:
    """The same in Python, for the sake of speed."""
    sae = sae or TopAFATrainingSAEConfig(d_in=192, d_sae=64)
    cfg = LanguageModelSAERunnerConfig(sae=sae, logger=LoggingConfig(log_to_wandb=False), **{**SETTINGS, **options})
    runner = InterruptibleTrainingRunner(cfg)
    runner.run()
    return runner


def judge(output: str = "eval", **options) -> EvalReport:
    """The trained SAE, by what it says of its training."""
    return evaluate_saes(load_saes(["sae"]), output, progress=False, **options)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def tokens(n: int = 60) -> list[list[int]]:
    return torch.randint(1, 4000, (n, 32)).tolist()


def write(form: str) -> str:
    rows = [{"text": chapter} for chapter in CHAPTERS]
    match form:
        case "text file":
            Path("data.txt").write_text("\n\n".join(CHAPTERS))
            return "data.txt"
        case "folder of jsonl":
            Path("data").mkdir()
            Path("data/a.jsonl").write_text("\n".join(map(json.dumps, rows[:6])))
            Path("data/b.jsonl").write_text("\n".join(map(json.dumps, rows[6:])))
        case "DatasetDict":
            DatasetDict(train=Dataset.from_list(rows)).save_to_disk("data")
        case "pretokenised folder":
            Dataset.from_list([{"input_ids": row} for row in tokens()]).save_to_disk("data")
        case "pretokenised parquet":
            Dataset.from_list([{"tokens": row} for row in tokens()]).to_parquet("data.parquet")
            return "data.parquet"
    return "data"


@pytest.mark.parametrize(
    "form",
    [
        "text file",
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("folder of jsonl", "DatasetDict", "pretokenised folder")
        ),
        "pretokenised parquet",
    ],
)
def test_eval_finds_the_text_that_train_read(form, model):
    runner = train(dataset_path=write(form), training_tokens=128)
    trained_on = next(runner.activations_store._iterate_tokenized_sequences())
    activations = model.run_with_cache(trained_on[None], names_filter=[HOOK])[1][HOOK]
    (sae,) = load_saes(["sae"]).values()
    (result,) = judge(tokens=32).results.values()
    expected = evaluate_activations(sae, activations)
    assert result.n_tokens == expected.n_tokens == 32
    assert result.l0_mean == pytest.approx(expected.l0_mean)
    assert result.feature_norm_median == pytest.approx(expected.feature_norm_median, rel=1e-5)


def test_an_sae_is_judged_and_exported_by_what_it_says_of_its_training():
    said = train_with_flags(flags(dataset_path=write("text file")))
    assert 'SAE.load_from_disk("sae")' in said
    report = judge(tokens=512)
    assert report.results["sae"].n_tokens == 512
    assert report.settings["context_size"] == 32
    assert export_to_folder("sae", "jump", tokens=640, progress=False).n_evaluation_tokens > 0
    assert SAE.load_from_disk("jump").cfg.architecture() == "jumprelu"


@pytest.mark.slow
def test_an_sae_of_any_model_folder_is_judged_by_its_own_metadata():
    train(
        dataset_path=write("text file"),
        model_class_name="AutoModelForCausalLM",
        hook_name="transformer.h.1",
        training_tokens=128,
    )
    report = judge(tokens=64, cross_entropy_tokens=64)
    assert report.results["sae"].n_tokens == 64
    assert report.results["sae"].ce_loss_without_sae is not None


@pytest.mark.filterwarnings("ignore:.* was trained for k = 8")  # six steps are few
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_checkpoint_is_judged_as_the_sae_that_it_becomes(architecture):
    k = {} if architecture == "top_afa" else {"k": 8}
    sae = CONFIGS[architecture](d_in=192, d_sae=64, normalize_activations="expected_average_only_in", **k)
    train(sae, dataset_path=write("text file"), save_final_checkpoint=True, checkpoint_path="checkpoints")
    (checkpoint,) = Path("checkpoints").glob("*/final_*")
    whole, of_checkpoint = load_saes(["sae", checkpoint]).values()
    assert of_checkpoint.cfg.architecture() == whole.cfg.architecture()
    assert of_checkpoint.cfg.metadata.context_size == 32
    x = torch.randn(4, 192)
    torch.testing.assert_close(of_checkpoint(x), whole(x))


def test_special_tokens_are_left_out_where_they_were_in_training():
    train(dataset_path=write("text file"), exclude_special_tokens=True)
    found = {
        wanted: judge(f"eval-{wanted}", tokens=128, exclude_special_tokens=wanted).results["sae"].n_tokens
        for wanted in (None, True, False)
    }
    assert found[None] == found[True] < found[False] == 128


def test_how_documents_were_joined_is_how_they_are_read():
    train(dataset_path=write("text file"), sequence_separator_token=None, prepend_bos=False)
    judge(tokens=512, per_token=True)
    tokens = pd.read_parquet("eval/tokens.parquet")
    assert len(tokens) == 512
    assert not tokens["context"].str.contains("endoftext").any()


def test_a_context_longer_than_the_model_s_is_one_line():
    train(dataset_path=write("text file"))
    with pytest.raises(ValueError, match="context_size is 4096, but the model reads at most 128 tokens: give 128"):
        judge(context_size=4096)
    assert not Path("eval").exists()


def test_a_run_goes_on_from_its_checkpoint_with_its_own_settings():
    train(dataset_path=write("text file"), n_checkpoints=1, checkpoint_path="checkpoints")
    (checkpoint,) = Path("checkpoints").glob("*/*")
    assert "trained" in train_with_flags([f"--resume-from-checkpoint={checkpoint}"])  # it replaces what it wrote itself
    Path("other").mkdir()
    Path("other/cfg.json").write_text("another SAE's")
    with pytest.raises(FileExistsError, match="overwrite"):
        train_with_flags(["--resume-from-checkpoint", str(checkpoint), "--output-path", "other"])
    shutil.rmtree("other")
    # As on another machine, which has no such device and another place for the SAE.
    settings = json.loads((checkpoint / "runner_cfg.json").read_text())
    (checkpoint / "runner_cfg.json").write_text(json.dumps({**settings, "device": "nonsense"}))
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used here"):
        train_with_flags(["--resume-from-checkpoint", str(checkpoint), "--output-path", "other"])
    train_with_flags(["--resume-from-checkpoint", str(checkpoint), "--output-path", "other", "--device", "cpu"])
    assert Path("other/cfg.json").is_file()
    (checkpoint / "sae_weights.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors is not a whole safetensors file"):
        train_with_flags(["--resume-from-checkpoint", str(checkpoint), "--output-path", "third", "--device", "cpu"])
