"""`train --config`: a run from a file, with flags before it, and a run's own file makes the run again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from cli_helpers import HOOK, train_flags
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig
from safetensors.torch import load_file

from sae_lens_afa.cli.config_file import config_of, read_settings
from sae_lens_afa.cli.runner_flags import parse_config
from sae_lens_afa.demo import model_folder


def settings_of(text: Path) -> dict:
    return {
        "sae": {"architecture": "top_afa", "d_in": 192, "d_sae": 256, "afa_coefficient": 0.0625},
        "model_name": str(model_folder()),
        "hook_name": HOOK,
        "dataset_path": str(text),
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 32,
        "training_tokens": 1024,
        "train_batch_size_tokens": 256,
        "n_batches_in_buffer": 8,
        "checkpoint_path": "checkpoints",
        "output_path": "out",
    }


def weights(folder: Path) -> dict:
    return load_file(folder / "sae_weights.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.slow
def test_a_run_by_flags_by_file_and_by_its_own_file_is_the_same(tmp_path, text, run):
    assert run(*train_flags(text, 1024)).code == 0
    Path("run.yaml").write_text(yaml.safe_dump(settings_of(text)))
    assert run("train", "--config", "run.yaml", "--output_path", "by-file").code == 0
    again = run("train", "--config=out/runner_cfg.json", "--output-path=again")
    assert again.code == 0, again.stderr
    assert same(weights(tmp_path / "out"), weights(tmp_path / "by-file"))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "again"))
    other = run("train", "--config", "out/runner_cfg.json", "--output_path=a=b", "--seed", "7")
    assert other.code == 0
    (tmp_path / "a=b").rename(tmp_path / "other")
    assert not same(weights(tmp_path / "out"), weights(tmp_path / "other"))
    ran = json.loads(Path("other/runner_cfg.json").read_text())
    assert (ran["seed"], ran["sae"]["afa_coefficient"], ran["logger"]["log_to_wandb"]) == (7, 0.0625, False)


def test_flags_go_before_the_file_and_types_are_kept(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "lr: 3e-4\ntraining_tokens: 1e6\nseqpos_slice: [1, null]\n"
        "sae: {architecture: afa_pursuit, d_in: 8, d_sae: 32, threshold_scale: 1}\nlogger: {wandb_project: mine}\n"
    )
    flags = parse_config(["--architecture", "afa_pursuit", "--d_sae", "64", "--lr=0.01", "--wandb_project", "x"])
    cfg = config_of(read_settings(path), flags, ["d_sae", "lr", "wandb_project"], path)
    assert (cfg.lr, cfg.training_tokens, tuple(cfg.seqpos_slice)) == (0.01, 1_000_000, (1, None))
    assert isinstance(cfg.training_tokens, int)
    assert (cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.threshold_scale) == (8, 64, 1)
    assert (cfg.logger.wandb_project, cfg.logger.log_to_wandb) == ("x", False)
    assert config_of(read_settings(path), flags, [], path).lr == 3e-4


def test_the_file_of_the_documentation_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.S | re.M)
    (tmp_path / "run.yaml").write_text(block)
    flags = parse_config(["--architecture", "afa_pursuit"])
    cfg = config_of(read_settings(tmp_path / "run.yaml"), flags, [], "run.yaml")
    assert (cfg.sae.architecture(), cfg.training_tokens, cfg.lr) == ("afa_pursuit", 100_000_000, 1e-3)


@pytest.mark.parametrize("architecture", list(SAE_TRAINING_CLASS_REGISTRY))
def test_what_any_architecture_writes_is_read(tmp_path, architecture):
    flags = ["--architecture", architecture, "--d_in", "32", "--d_sae", "128"]
    if "matryoshka_widths" in SAE_TRAINING_CLASS_REGISTRY[architecture][1].__dataclass_fields__:
        flags += ["--matryoshka_widths", "64", "128"]
    cfg = parse_config(flags)
    path = tmp_path / "runner_cfg.json"
    path.write_text(json.dumps(cfg.to_dict()))
    read = config_of(read_settings(path), cfg, [], path)
    assert isinstance(read.sae, TrainingSAEConfig)
    assert read.sae.to_dict() == cfg.sae.to_dict()
    differing = {name for name, value in cfg.to_dict().items() if read.to_dict()[name] != value}
    assert differing <= {"checkpoint_path"}  # which gets a folder of its own in every run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: fast", "lr must be of type float, got 'fast'"),
        ("training_tokens: 1.5", "training_tokens must be of type int, got 1.5"),
        ("streaming: 1", "streaming must be of type bool, got 1"),
        ("seed: true", "seed must be of type int, got True"),
        ("training_token: 5", "there is no setting training_token; did you mean training_tokens"),
        ("sae: {d_saee: 5}", "there is no setting sae.d_saee"),
        ("sae: {architecture: top_aff}", "sae.architecture 'top_aff' is not known; near matches: top_afa"),
        ("sae: {architecture: top_afa, d_in: 0, d_sae: 16}", "--config run.yaml: TopAFATrainingSAEConfig.d_in must be"),
        ("logger: {log_to_wand: true}", "there is no setting logger.log_to_wand; did you mean log_to_wandb"),
        ("logger: yes please", "logger must hold settings as name: value"),
        ("- 1\n- 2", "the file must hold settings as name: value"),
        ("a: [", "run.yaml cannot be read: "),
        (None, "run.yaml is not a file; give YAML or JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(content, message, run):
    if content is not None:
        Path("run.yaml").write_text(content)
    done = run("train", "--config", "run.yaml")
    assert done.code == 1
    assert message in done.error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config"], "--config needs a file"),
        (["--config="], "--config needs a file"),
        (["--config=run.yaml", "--architecture=topk"], "--architecture and run.yaml name two architectures"),
        (["--config", "--lr", "1"], "--config needs a file"),
        (["--config", "run.yaml", "--architecture", "topk"], "--architecture and run.yaml name two architectures"),
        (["--config", "run.yaml", "--k", "4"], "top_afa has no --k"),
    ],
)
def test_a_file_and_flags_that_do_not_go_together(args, message, run):
    Path("run.yaml").write_text("sae: {architecture: top_afa, d_in: 8, d_sae: 16}")
    assert message in run("train", *args).error


def test_a_file_may_leave_the_architecture_to_its_flag(run):
    Path("run.yaml").write_text("sae: {d_in: 8, d_sae: 16, k: 3}\ntraining_tokens: 100\nn_batches_in_buffer: 64")
    assert "there is no setting sae.k" in run("train", "--config", "run.yaml").error
    assert "training_tokens is 100" in run("train", "--config", "run.yaml", "--architecture", "topk").error


def test_nothing_is_logged_to_wandb_unless_asked_for():
    assert parse_config(["--lr", "1"]).logger.log_to_wandb is False
    assert parse_config(["--log_to_wandb", "true"]).logger.log_to_wandb is True
