"""`sae-lens-afa export` and `convert`: what is written and said, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import save_untrained
from sae_lens import SAE
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from test_reference_checkpoint import BATCHTOPK, TOPK, checkpoint


def test_the_first_of_the_demo_s_saes_is_the_default(tmp_path, run):
    assert "run `sae-lens-afa demo` first" in run("export", "--demo", "--output", "out").error
    save_untrained(tmp_path / "runs" / "demo")
    done = run("export", "--demo", "--output", "out", "--tokens", "640")
    assert done.code == 0, done.stderr
    assert "Jaccard" in done.stdout
    assert "cross-entropy (model: " in done.stdout
    assert 'saved in out; SAE.load_from_disk("out") loads it' in done.stdout
    assert SAE.load_from_disk(tmp_path / "out").cfg.architecture() == "jumprelu"
    assert "pass --overwrite" in run("export", "--demo", "--output", "out").error


def test_every_option_of_export_counts(tmp_path, run):
    save_untrained(tmp_path / "sae")
    done = run(
        "export", "--demo", "--sae", "sae", "--output", "out", "--tokens", "640", "--hook", "blocks.2.hook_resid_pre",
        "--context-size", "16", "--batch-size-prompts", "4",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.hook_name == "blocks.2.hook_resid_pre"


def test_a_file_of_activations_is_calibrated_on(tmp_path, run):
    save_untrained(tmp_path / "sae")
    save_file({"activations": torch.randn(2000, 192)}, tmp_path / "acts.safetensors")
    done = run("export", "--sae", "sae", "--output", "out", "--activations", "acts.safetensors")
    assert done.code == 0, done.stderr
    assert "Jaccard" in done.stdout
    assert "cross-entropy" not in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to export: give --sae PATH, or --demo"),
        (["--activations", "acts", "--demo"], "leave out --demo"),
        (["--sae", "sae", "--activations", "acts", "--hook", "x", "--context-size", "8"], "out --hook, --context-size"),
        (["--sae", "sae", "--activations", "acts", "--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["--sae", "sae", "--activations", "none"], "--activations none is not a file; give a .safetensors file"),
        (["--demo", "--sae", "sae", "--tokens", "0"], "--tokens must be at least 1"),
        (["--sae", "sae", "--model", "gpt2"], "does not say its dataset_path: give --dataset"),
        (["--sae", "sae"], "was trained on the bundled model: give --demo (or --model and --dataset)"),
        (["--sae", "nowhere", "--demo"], "--sae nowhere is not a folder; give the folder of a saved SAE"),
    ],
)
def test_a_wrong_export_is_one_line_and_writes_nothing(tmp_path, args, message, run):
    save_untrained(tmp_path / "sae")
    save_file({"x": torch.randn(100, 192)}, tmp_path / "acts")
    done = run("export", "--output", "out", *args)
    assert done.code == 1
    assert message in done.error
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_converted(tmp_path, run):
    checkpoint(tmp_path / "in", TOPK)
    done = run("convert", "in", "out")
    assert done.stdout == 'saved in out; SAE.load_from_disk("out") loads it\n', done.stderr
    assert SAE.load_from_disk(tmp_path / "out").cfg.architecture() == "topk"
    assert "pass --overwrite" in run("convert", "in", "out").error


def test_a_batchtopk_checkpoint_is_converted_with_a_file(tmp_path, run):
    t = checkpoint(tmp_path / "in", BATCHTOPK)
    assert "--activations" in run("convert", "in", "out").error
    save_file({"x": t["x"]}, tmp_path / "x.safetensors")
    done = run("convert", "in", "out", "--activations", "x.safetensors")
    assert done.code == 0, done.stderr
    assert "active sets: Jaccard" in done.stdout
    assert "saved in out" in done.stdout
