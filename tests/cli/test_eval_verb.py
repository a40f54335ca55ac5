"""`sae-lens-afa eval` and `plot`: what is judged, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import save_untrained


def test_eval_judges_the_demo_s_sae_and_plot_redraws(tmp_path, run):
    save_untrained(tmp_path / "runs" / "demo")
    judged = run("eval", "--demo", "--sae", "runs/demo", "--tokens", "512", "--output", "judged", "--per-token")
    assert judged.code == 0, judged.stderr
    assert "eps-LBO" in judged.stdout
    metrics = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert metrics["saes"]["demo"]["metrics"]["n_tokens"] == 512
    for name in ("zf.png", "eps_lbo.png", "tokens.parquet"):
        assert str(Path("judged") / name) in judged.stdout
        assert (tmp_path / "judged" / name).stat().st_size > 0
    redrawn = run("plot", "judged", "--format", "svg", "--output", "drawings")
    assert redrawn.code == 0, redrawn.stderr
    assert (tmp_path / "drawings" / "zf.svg").read_text().lstrip().startswith("<?xml")
    assert "--overwrite" in run("eval", "--demo", "--output", "judged").error


def test_the_demo_s_saes_are_the_default(tmp_path, run):
    assert "there is no demo SAE in runs/demo: run `sae-lens-afa demo` first" in run("eval", "--demo").error
    judged = tmp_path / "runs" / "eval" / "metrics.json"
    for name, found in (("demo", ["demo"]), ("demo-afa_pursuit", ["demo", "demo-afa_pursuit"])):
        save_untrained(tmp_path / "runs" / name)
        done = run("eval", "--demo", "--tokens", "64", "--overwrite")
        assert done.code == 0, done.stderr
        assert list(json.loads(judged.read_text())["saes"]) == found


def test_every_option_says_what_is_judged(tmp_path, run):
    save_untrained(tmp_path / "sae")
    done = run(
        "eval", "--demo", "--sae", "sae", "--output", "out", "--hook", "blocks.2.hook_resid_pre", "--tokens", "128",
        "--context-size", "16", "--batch-size-prompts", "4", "--cross-entropy-tokens", "32", "--position", "-1",
        "--position", "3", "--include-special-tokens", "--outlier-norm-multiple", "1.5", "--rescale-by-token-std",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    data = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (sae,) = data["saes"].values()
    assert sae["hook_name"] == "blocks.2.hook_resid_pre"
    assert sae["metrics"]["n_tokens"] == 128
    assert sae["metrics"]["ce_loss_with_sae"] is not None
    assert sae["metrics"]["without_outliers_n_tokens"] is not None
    said = {
        "model": "kjv_gpt2", "dataset": "King James Bible, held-out chapters", "tokens": 128, "context_size": 16,
        "positions": [-1, 3], "exclude_special_tokens": False, "outlier_norm_multiple": 1.5,
        "rescale_by_token_std": True,
    }  # fmt: skip
    assert data["settings"] == said


JB = ("--release", "gpt2-small-res-jb")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to judge: give --sae PATH"),
        (["--demo"], "run `sae-lens-afa demo` first"),
        (["--sae", "nowhere"], "--sae nowhere is not a folder"),
        (["--sae", "empty"], "empty has no cfg.json, sae_weights.safetensors"),
        (["--sae", "sae", "--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--sae", "sae", "--batch-size-prompts", "0"], "--batch-size-prompts must be at least 1, got 0"),
        (["--sae", "sae", "--context-size", "0"], "--context-size must be at least 1"),
        (["--sae", "sae", "--cross-entropy-tokens", "-1"], "--cross-entropy-tokens must not be negative"),
        (["--sae", "sae", "--outlier-norm-multiple", "-1"], "--outlier-norm-multiple must be > 0"),
        (["--sae", "sae", "--device", "nonsense"], "device 'nonsense' cannot be used here"),
        (["--sae", "sae", "--device", "nonsense"], "Try --device cpu"),
        (["--sae", "sae", "--sae-id", "x"], "give --release too"),
        (
            ["--release", "gpt2-small-res-jbb", "--sae-id", "x"],
            "--release 'gpt2-small-res-jbb' is not known to SAELens",
        ),
        (["--release", "gpt2-small-res-jbb", "--sae-id", "x"], "near matches: gpt2-small-res-jb,"),
        ([*JB], "--release gpt2-small-res-jb needs --sae-id, one of 13: blocks.0.hook_resid_pre"),
        (
            [*JB, "--sae-id", "blocks.6.hook_resid_pr"],
            "--sae-id 'blocks.6.hook_resid_pr' is not in release gpt2-small-res-jb; near matches: blocks.6.hook_res",
        ),
        (["--demo", "--sae", "sae", "--model", "gpt2"], "--demo has its own model and text: leave out --model and"),
        (["--sae", "sae"], "sae was trained on the bundled model: give --demo (or --model and --dataset)"),
        (["--sae", "sae", "--model", "gpt2"], "does not say its dataset_path: give --dataset"),
        (["--sae", "sae", "--model", "gpt2x", "--dataset", "t.txt"], "--model 'gpt2x' cannot be loaded"),
        (["--sae", "sae", "--model", "gpt2", "--dataset", "none.txt"], "--dataset none.txt: there is no such file"),
        (["--demo", "--sae", "sae", "--hook", "blocks.9.hook_resid_pre"], "no hook 'blocks.9.hook_resid_pre'; did you"),
        (["--demo", "--sae", "sae", "--context-size", "4096"], "--context-size is 4096, but the model reads at most"),
        (["--demo", "--sae", "blank"], "blank does not say which hook it codes: give --hook"),
    ],
)
def test_a_wrong_evaluation_is_one_line_and_leaves_nothing_behind(tmp_path, args, message, run):
    save_untrained(tmp_path / "sae")
    save_untrained(tmp_path / "blank", hook_name=None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.txt").write_text("In the beginning\n\n")
    there = sorted(path.name for path in tmp_path.iterdir())
    done = run("eval", *args)
    assert done.code == 1
    assert message in done.error
    assert sorted(path.name for path in tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("args", "message"),
    [(["here"], "here has no metrics.json"), (["here", "--format", "gif"], "here has no metrics.json")],
)
def test_a_wrong_plot_is_one_line(tmp_path, args, message, run):
    (tmp_path / "here").mkdir()
    assert message in run("plot", *args).error
