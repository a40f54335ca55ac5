"""The example scripts run, offline and at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sae_lens import SAE

from sae_lens_afa import TopAFASAE
from sae_lens_afa.demo import load_text, model_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_train_gpt2_runs_offline_from_local_folders(tmp_path):
    (tmp_path / "text").mkdir()
    rows = (json.dumps({"text": chapter}) for chapter in load_text().train[:100])
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(rows))
    flags = ["--layer", "1", "--expansion", "2", "--tokens", "4096", "--batch", "512", "--device", "cpu"]
    paths = ["--model-path", str(model_folder()), "--dataset-path", "text", "--output", "out"]
    command = [sys.executable, str(EXAMPLES / "train_gpt2.py"), *flags, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sae = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(sae, TopAFASAE)
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (192, 384)
    details = sae.cfg.metadata.training_architecture_details
    assert (details["loss_reduction"], details["detach_aux_residual"]) == ("mean", False)


def test_train_demo_lm_has_the_settings_of_the_bundled_model():
    settings = json.loads((model_folder() / "training.json").read_text())["settings"]
    shown = subprocess.run(
        [sys.executable, str(EXAMPLES / "train_demo_lm.py"), "--help"], capture_output=True, text=True
    ).stdout
    for name in settings:
        assert f"--{name.replace('_', '-')}" in shown
    config = json.loads((model_folder() / "config.json").read_text())
    assert (config["n_embd"], config["n_layer"]) == (settings["d_model"], settings["layers"])
    assert (config["vocab_size"], config["n_positions"]) == (settings["vocab_size"], settings["context"])


def test_reproduce_paper_runs_on_the_bundled_model_with_one_architecture_more(tmp_path):
    command = [sys.executable, str(EXAMPLES / "reproduce_paper.py"), "--preset", "tiny", "--steps", "3"]
    done = subprocess.run([*command, "--with-jumprelu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "runs" / "paper" / "report.md").read_text()
    for label in ("top_afa", "topk", "batchtopk", "jumprelu"):
        assert f"| layer 1 | {label} |" in report
    assert "runs/paper/report.md" in done.stdout
