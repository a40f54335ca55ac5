"""`sae-lens-afa demo`: what it trains, judges, writes and says."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_lens_afa import TopAFATrainingSAE

SIZES = ("--tokens", "2048", "--eval-tokens", "256")


def test_demo_trains_evaluates_saves_and_says_how_to_load(tmp_path, run):
    done = run("demo", "--tokens", "12288", "--eval-tokens", "256")
    assert done.code == 0, done.stderr
    stages = re.findall(r"^\[(\d)/5\] (\w+)(?: SAE (\d of \d), (\w+))?", done.stderr, re.MULTILINE)
    assert stages == [
        ("1", "load", "", ""), ("2", "train", "1 of 2", "top_afa"), ("3", "train", "2 of 2", "afa_pursuit"),
        ("4", "evaluate", "", ""), ("5", "look", "", ""),
    ]  # fmt: skip
    assert re.search(r"256/256 \[", done.stderr), "the evaluation has a bar"
    assert re.search(r"top_afa +afa_pursuit", done.stdout), "side by side"
    for row in ("L0", "explained variance", "with the SAE in place", "||f|| / ||z||"):
        assert row in done.stdout
    judged = json.loads((tmp_path / "runs/demo-eval/metrics.json").read_text())
    assert judged["settings"]["model"] == "kjv_gpt2"
    assert judged["settings"]["dataset"] == "King James Bible, held-out chapters"
    results = {name: sae["metrics"] for name, sae in judged["saes"].items()}
    assert list(results) == ["top_afa", "afa_pursuit"]
    for name, result in results.items():
        assert result["n_tokens"] == 256
        assert result["explained_variance"] < 1
        assert result["ce_loss_without_sae"] < result["ce_loss_with_sae"]
        assert judged["saes"][name]["architecture"] == name
        assert (f"{name}'s L0 is above d_in = 192" in done.stdout) == (result["l0_mean"] > 192)
    # Six steps are enough for the dense code only.
    assert results["top_afa"]["explained_variance"] > 0
    assert results["top_afa"]["ce_loss_with_sae"] < results["top_afa"]["ce_loss_with_ablation"]
    snippet = next(line.strip() for line in done.stdout.splitlines() if "load_from_disk" in line)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["sae"].cfg.d_sae == 3072
    assert SAE.load_from_disk(tmp_path / "runs/demo-afa_pursuit").cfg.architecture() == "afa_pursuit"

    assert sorted(os.listdir(tmp_path / "runs")) == ["demo", "demo-afa_pursuit", "demo-eval", "demo-features"]
    page = tmp_path / "runs/demo-features/features.html"
    assert f"to look at in a browser: {page.relative_to(tmp_path)}\n" in done.stdout
    assert "afa_pursuit at blocks.2.hook_resid_pre" in page.read_text(encoding="utf-8")
    assert "pass --overwrite" in run("demo", *SIZES).error


@pytest.mark.slow
def test_another_demo_replaces_the_first_on_request(tmp_path, run):
    before = {"demo": "cfg.json", "demo-afa_pursuit": "cfg.json", "demo-eval": "metrics.json"}
    besides = {"demo-eval", "demo-features"}
    before["demo-features"] = "features.html"
    for folder, file in before.items():
        (tmp_path / "runs" / folder).mkdir(parents=True)
        for name in (file, "of the first"):
            (tmp_path / "runs" / folder / name).write_text("{}")
    done = run("demo", *SIZES, "--overwrite")
    assert done.code == 0, done.stderr
    for folder, file in before.items():
        assert len((tmp_path / "runs" / folder / file).read_text()) > 2
        # Of an SAE's folder nothing stays, beside an evaluation and a page may be files of the user's.
        assert (tmp_path / "runs" / folder / "of the first").exists() == (folder in besides)
    assert sorted(os.listdir(tmp_path / "runs")) == list(before)


@pytest.mark.slow
def test_an_interrupted_demo_continues(tmp_path, run, monkeypatch):
    step = TopAFATrainingSAE.training_forward_pass

    def interrupted_in_its_second_step(sae, step_input):
        if step_input.n_training_steps == 1:
            signal.raise_signal(signal.SIGINT)
        return step(sae, step_input)

    sizes = ["--tokens", str(4 * 2048), "--eval-tokens", "256"]
    with monkeypatch.context() as patch:
        patch.setattr(TopAFATrainingSAE, "training_forward_pass", interrupted_in_its_second_step)
        done = run("demo", "--output", "sae", *sizes)
    assert done.code == 130
    assert not (tmp_path / "sae").exists()
    checkpoint = re.search(r"sae-lens-afa demo --resume-from-checkpoint (\S+)", done.stderr).group(1)
    assert int(Path(checkpoint).name) == 2 * 2048
    done = run("demo", "--output", "sae", *sizes, "--resume-from-checkpoint", checkpoint)
    assert done.code == 0, done.stderr
    assert SAE.load_from_disk(tmp_path / "sae").W_dec.shape == torch.Size([3072, 192])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tokens", "5"], "tokens must be at least 2048"),
        (["--eval-tokens", "0"], "--eval-tokens must be at least 1, got 0"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--output", "taken"], "output folder taken exists; pass --overwrite"),
        (["--output", "judged"], "output folder judged-eval exists; pass --overwrite"),
        (["--output", "seen"], "output folder seen-features exists; pass --overwrite"),
        (["--resume-from-checkpoint", "nowhere"], "--resume-from-checkpoint: nowhere is not a folder"),
    ],
)
def test_a_wrong_demo_is_one_line_and_leaves_nothing_behind(tmp_path, args, message, run):
    there = ["judged-eval", "seen-features", "taken"]
    for name in there:
        (tmp_path / name).mkdir()
    done = run("demo", *args)
    assert done.code == 1
    assert message in done.error
    assert sorted(path.name for path in tmp_path.iterdir()) == there
