"""`sae-lens-afa features`: the page of an SAE by the names of its model and its text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cli_helpers import HOOK, save_untrained

from sae_lens_afa.demo import load_text, model_folder


def test_the_demo_s_sae_is_looked_at(tmp_path, run):
    save_untrained(tmp_path / "runs" / "demo")
    save_untrained(tmp_path / "runs" / "demo-afa_pursuit")
    done = run("features", "--demo", "--tokens", "256")
    assert done.code == 0, done.stderr
    assert f"demo-afa_pursuit at {HOOK}: 64 latents on 256 tokens" in done.stdout
    for name in ("features.html", "latents.csv"):
        assert str(Path("runs/features") / name) in done.stdout
    page = (tmp_path / "runs/features/features.html").read_text(encoding="utf-8")
    assert "256 tokens of King James Bible, held-out chapters" in page
    assert "kjv_gpt2" in page
    with (tmp_path / "runs/features/latents.csv").open() as file:
        assert [row["latent"] for row in csv.DictReader(file)] == [str(i) for i in range(64)]
    assert "pass --overwrite" in run("features", "--demo").error


def test_model_text_and_hook_by_name(tmp_path, run):
    save_untrained(tmp_path / "sae")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/train.jsonl").write_text("\n".join(json.dumps({"text": c}) for c in load_text().train[:9]))
    done = run(
        "features", "--sae", "sae", "--model", str(model_folder()), "--dataset", "text", "--hook",
        "blocks.3.hook_resid_pre", "--context-size", "16", "--tokens", "128", "--output", "seen", "--overwrite",
        "--batch-size-prompts", "2", "--exclude-special-tokens",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "sae at blocks.3.hook_resid_pre: 64 latents on 120 tokens" in done.stdout  # eight prompts without their BOS


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "nothing to look at: give --sae PATH, or --release NAME with --sae-id ID, or --demo"),
        (("--sae", "nowhere"), "nowhere"),
        (("--sae", "sae", "--sae", "sae"), "a page shows one SAE: give one"),
        (("--sae", "sae"), "--demo"),
        (("--sae", "sae", "--demo", "--model", "gpt2"), "--demo has its own model and text"),
        (("--sae", "sae", "--demo", "--tokens", "0"), "--tokens must be at least 1, got 0"),
        (("--sae", "sae", "--demo", "--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--sae", "sae", "--demo", "--hook", "blocks.7.hook_resid_pre"), "hook"),
        (("--sae", "sae", "--demo", "--output", "sae"), "output folder sae exists; pass --overwrite"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing_behind(tmp_path, run, args, message):
    save_untrained(tmp_path / "sae")
    done = run("features", *args)
    assert done.code == 1
    assert message in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
