"""A run from its text to its figures through the command: names of data and models mean the same for each verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens import SAE, BatchTopKTrainingSAEConfig, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa import FeatureChoiceTrainingSAEConfig, MutualChoiceTrainingSAEConfig, TopAFATrainingSAEConfig
from sae_lens_afa._cli_train import parse_config, train_command
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.evals import run_afa_evals
from sae_lens_afa.evals.command import EvalRequest, eval_command, load_requested_saes, model_and_text
from sae_lens_afa.interop.command import ExportRequest, export_command
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
    "form", ["text file", "folder of jsonl", "DatasetDict", "pretokenised folder", "pretokenised parquet"]
)
def test_eval_finds_the_text_that_train_read(form):
    runner = train(dataset_path=write(form), training_tokens=128)
    request = EvalRequest(output=Path("eval"), sae=[Path("sae")])
    model, store = model_and_text(request, load_requested_saes(request))
    assert model.cfg.d_model == 192
    trained_on = next(runner.activations_store._iterate_tokenized_sequences())
    assert torch.equal(store.get_batch_tokens(1)[0], trained_on)


def test_an_sae_is_judged_and_exported_by_what_it_says_of_its_training():
    said = train_command(flags(dataset_path=write("text file")))
    assert 'SAE.load_from_disk("sae")' in said
    report = eval_command(EvalRequest(output=Path("eval"), sae=[Path("sae")], tokens=512), progress=False)
    assert report.results["sae"].n_tokens == 512
    assert report.settings["context_size"] == 32
    exported = export_command(ExportRequest(output=Path("jump"), sae=Path("sae"), tokens=640), progress=False)
    assert SAE.load_from_disk(exported.folder).cfg.architecture() == "jumprelu"


def test_an_sae_of_any_model_folder_is_judged_by_its_own_metadata():
    train(dataset_path=write("text file"), model_class_name="AutoModelForCausalLM", hook_name="transformer.h.1")
    report = eval_command(
        EvalRequest(output=Path("eval"), sae=[Path("sae")], tokens=256, cross_entropy_tokens=128), progress=False
    )
    assert report.results["sae"].n_tokens == 256
    assert report.results["sae"].ce_loss_without_sae is not None


@pytest.mark.filterwarnings("ignore:.* was trained for k = 8")  # six steps are few
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_checkpoint_is_judged_as_the_sae_that_it_becomes(architecture):
    k = {} if architecture == "top_afa" else {"k": 8}
    sae = CONFIGS[architecture](d_in=192, d_sae=64, normalize_activations="expected_average_only_in", **k)
    train(sae, dataset_path=write("text file"), save_final_checkpoint=True, checkpoint_path="checkpoints")
    (checkpoint,) = Path("checkpoints").glob("*/final_*")
    saes = [Path("sae"), checkpoint]
    loaded = load_requested_saes(EvalRequest(output=Path("eval"), sae=saes, model="m", dataset="d"))
    whole, of_checkpoint = loaded.values()
    assert of_checkpoint.cfg.architecture() == whole.cfg.architecture()
    assert of_checkpoint.cfg.metadata.context_size == 32
    x = torch.randn(4, 192)
    torch.testing.assert_close(of_checkpoint(x), whole(x))


def test_special_tokens_are_left_out_where_they_were_in_training():
    path = write("text file")
    train(dataset_path=path, exclude_special_tokens=True)
    found = {}
    for wanted in (None, True, False):
        request = EvalRequest(output=Path("eval"), sae=[Path("sae")], exclude_special_tokens=wanted)
        saes = load_requested_saes(request)
        model, store = model_and_text(request, saes)
        options = {"tokens": 512, "exclude_special_tokens": wanted, "progress": False}
        found[wanted] = run_afa_evals(saes, store, model, **options)["sae"].n_tokens
    assert found[None] == found[True] < found[False] == 512


def test_how_documents_were_joined_is_how_they_are_read():
    train(dataset_path=write("text file"), sequence_separator_token=None, prepend_bos=False)
    request = EvalRequest(output=Path("eval"), sae=[Path("sae")])
    _, store = model_and_text(request, load_requested_saes(request))
    assert 0 not in store.get_batch_tokens(16)  # the model's BOS


def test_a_context_longer_than_the_model_s_is_one_line():
    train(dataset_path=write("text file"))
    with pytest.raises(ValueError, match="--context-size is 4096, but the model reads at most 128 tokens: give 128"):
        eval_command(EvalRequest(output=Path("eval"), sae=[Path("sae")], context_size=4096), progress=False)
    assert not Path("eval").exists()


def test_an_sae_of_the_demo_asks_for_it():
    train(dataset_path=write("text file"))
    cfg = json.loads(Path("sae/cfg.json").read_text())
    cfg["metadata"] |= {"model_name": "kjv_gpt2", "dataset_path": "King James Bible (bundled)"}
    Path("sae/cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match="sae was trained on the bundled model: give --demo"):
        eval_command(EvalRequest(output=Path("eval"), sae=[Path("sae")]), progress=False)


def test_a_run_goes_on_from_its_checkpoint_with_its_own_settings():
    train(dataset_path=write("text file"), n_checkpoints=1, checkpoint_path="checkpoints")
    (checkpoint,) = Path("checkpoints").glob("*/*")
    assert "trained" in train_command([f"--resume-from-checkpoint={checkpoint}"])  # it replaces what it wrote itself
    Path("other").mkdir()
    Path("other/cfg.json").write_text("another SAE's")
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        train_command(["--resume-from-checkpoint", str(checkpoint), "--output-path", "other"])
    shutil.rmtree("other")
    # As on another machine, which has no such device and another place for the SAE.
    settings = json.loads((checkpoint / "runner_cfg.json").read_text())
    (checkpoint / "runner_cfg.json").write_text(json.dumps({**settings, "device": "nonsense"}))
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used here"):
        train_command(["--resume-from-checkpoint", str(checkpoint), "--output-path", "other"])
    train_command(["--resume-from-checkpoint", str(checkpoint), "--output-path", "other", "--device", "cpu"])
    assert Path("other/cfg.json").is_file()
    (checkpoint / "sae_weights.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors is not a whole safetensors file"):
        train_command(["--resume-from-checkpoint", str(checkpoint), "--output-path", "third", "--device", "cpu"])


# ---- flags


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--architecture", "top_afa", "--k", "32"], "top_afa has no --k; it is an option of topk, "),
        (["--architecture=top_afa", "--k=32"], "top_afa has no --k"),
        (["--architecture", "top_afa", "--target", "0.7"], "unknown flag --target; did you mean --target_ratio?"),
        (["--architecture", "topk", "--afa-coefficient", "1"], "topk has no --afa_coefficient; .* of top_afa"),
        (["--architecture", "topk", "--training-token", "1"], "--training_token; did you mean --training_tokens?"),
        (["--architecture", "top_afa", "--qqqqqq", "1"], "unknown flag --qqqqqq; see sae-lens-afa train --help"),
        (["--architecture", "top_aff"], "--architecture 'top_aff' is not known; near matches: top_afa"),
        (["--architecture", "topk", "--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--architecture", "topk", "--lr"], "--lr: expected one argument"),
        (["stray", "--lr", "1"], "'stray' is not a flag"),
        (["--architecture", "mutual_choice", "--d_sae", "16"], "k must be at most 16"),
    ],
)
def test_flags_are_whole_and_known(args, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_config(args)
    assert "\n" not in str(raised.value)


def test_dashes_and_underscores_are_one():
    for spelt in ("--training-tokens", "--training_tokens"):
        with pytest.raises(ValueError, match="training_tokens is 100, less than one batch"):
            train_command(["--architecture", "top_afa", spelt, "100", "--n-batches-in-buffer", "64"])
