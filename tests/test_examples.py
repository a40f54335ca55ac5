"""The example scripts run, offline and at a small size."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput

from sae_lens_afa import AFAPursuitTrainingSAE, AFAPursuitTrainingSAEConfig, TopAFASAE, TopAFASAEConfig, hub
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.reports import read_report

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def text(tmp_path) -> Path:
    """Chapters of the bundled text, as a folder of the user's."""
    rows = (json.dumps({"text": chapter}) for chapter in load_text().train[:100])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(rows))
    return tmp_path / "text"


@pytest.mark.slow
def test_train_gpt2_runs_offline_from_local_folders(text, client, hub):
    flags = ["--layer", "1", "--expansion", "2", "--tokens", "4096", "--batch", "512", "--device", "cpu"]
    paths = ["--model-path", str(model_folder()), "--dataset-path", f"../{text.name}", "--output", "out"]
    client.program(EXAMPLES / "train_gpt2.py", *flags, *paths)
    assert not hub.requests
    sae = SAE.load_from_disk(client.cwd / "out")
    assert isinstance(sae, TopAFASAE)
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (192, 384)
    details = sae.cfg.metadata.training_architecture_details
    assert (details["loss_reduction"], details["detach_aux_residual"]) == ("mean", False)


@pytest.mark.slow
def test_evaluate_pretrained_judges_the_last_token_of_each_prompt(tmp_path, text, monkeypatch, capsys):
    def of_the_bundled_model(paths, release, sae_ids, device):
        assert (paths, release, device) == ([], "gpt2-small-res-jb", "cpu")
        saes = {}
        for hook in sae_ids:
            saes[hook] = TopAFASAE(TopAFASAEConfig(d_in=192, d_sae=256))
            torch.nn.init.normal_(saes[hook].W_enc)
            saes[hook].cfg.metadata.model_name, saes[hook].cfg.metadata.hook_name = str(model_folder()), hook
        return saes

    monkeypatch.setattr(hub, "load_saes", of_the_bundled_model)
    flags = ["--output", str(tmp_path / "out"), "--layers", "1", "2", "--prompts", "8", "--dataset", str(text)]
    monkeypatch.setattr(sys, "argv", ["evaluate_pretrained.py", *flags])
    runpy.run_path(str(EXAMPLES / "evaluate_pretrained.py"), run_name="__main__")
    results = read_report(tmp_path / "out").results
    assert list(results) == ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    assert {result.n_tokens for result in results.values()} == {8}
    assert "epsilon_lbo_median: best blocks." in capsys.readouterr().out


def test_train_demo_lm_has_the_settings_of_the_bundled_model(monkeypatch):
    settings = json.loads((model_folder() / "training.json").read_text())["settings"]
    monkeypatch.setattr(sys, "argv", ["train_demo_lm.py", "--output", "demo_lm", "--device", "cpu"])
    defaults = vars(runpy.run_path(str(EXAMPLES / "train_demo_lm.py"))["parse_args"]())
    assert {name: defaults[name] for name in settings} == settings
    config = json.loads((model_folder() / "config.json").read_text())
    assert (config["n_embd"], config["n_layer"]) == (settings["d_model"], settings["layers"])
    assert (config["vocab_size"], config["n_positions"]) == (settings["vocab_size"], settings["context"])


@pytest.mark.slow
def test_reproduce_paper_runs_on_the_bundled_model_with_one_architecture_more(client):
    flags = ["--preset", "tiny", "--steps", "3", "--with-jumprelu"]
    done = client.program(EXAMPLES / "reproduce_paper.py", *flags)
    report = (client.cwd / "runs" / "paper" / "report.md").read_text()
    for label in ("top_afa", "topk", "batchtopk", "jumprelu"):
        assert f"| layer 1 | {label} |" in report
    assert "runs/paper/report.md" in done.output


def test_a_token_is_drawn_as_a_pursuit_takes_it_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["", "--world", "zipf-2x", "--features", "4", "--output", str(tmp_path / "out.png")]
    )
    runpy.run_path(str(EXAMPLES / "pursuit_by_stages.py"), run_name="__main__")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "stages" in capsys.readouterr().out


@pytest.mark.slow
def test_variants_of_the_pursuit_are_what_they_say_and_are_compared(client):
    made = runpy.run_path(str(EXAMPLES / "pursuit_variants.py"))
    saes = {}
    for name, variant in {"as it is": AFAPursuitTrainingSAE, **made["VARIANTS"]}.items():
        torch.manual_seed(0)
        sae = saes[name] = variant(AFAPursuitTrainingSAEConfig(d_in=8, d_sae=32, growth_steps=8))
        sae.train()
        x = torch.randn(64, 8) + 1
        for n in range(6):
            step = TrainStepInput(x, {}, torch.zeros(32, dtype=torch.bool), n, False)
            sae.training_forward_pass(step)
            if n == 0:
                first = sae.rule_at(step).threshold
        assert first == pytest.approx(sae.pursuit_rule().threshold * {"c from 2": 2, "c from 0.8": 0.8}.get(name, 1))
        assert sae.rule_at(step).threshold == pytest.approx(sae.pursuit_rule().threshold)
        along = torch.nn.functional.normalize(x - sae.b_dec, dim=-1) @ sae.W_dec[:2].T
        assert bool((along.amax(0) > 1 - 1e-5).all()) == (name == "rows from tokens")
    assert {name: bool(sae.typical_norm > 0) for name, sae in saes.items()} == {n: n != "token's floor" for n in saes}
    flags = ["--preset", "tiny", "--world", "tiny", "--seed", "0", "--output", "variants"]
    client.program(EXAMPLES / "pursuit_variants.py", *flags)
    report = (client.cwd / "variants" / "report.md").read_text()
    for name in ("afa_pursuit", *made["VARIANTS"]):
        assert f"| tiny | {name} |" in report


def test_concepts_pictures_draws_its_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["concepts_pictures.py", "--output", str(tmp_path / "pictures")])
    runpy.run_path(str(EXAMPLES / "concepts_pictures.py"), run_name="__main__")
    drawn = sorted((tmp_path / "pictures").iterdir())
    assert capsys.readouterr().out.split() == [str(path) for path in drawn]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert len(drawn) == 3


@pytest.mark.slow
def test_what_is_logged_to_wandb_is_what_the_docs_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)  # the script changes it
    monkeypatch.setattr(sys, "argv", ["wandb_offline.py", "--steps", "12", "--output", str(tmp_path / "wandb.png")])
    runpy.run_path(str(EXAMPLES / "wandb_offline.py"), run_name="__main__")
    logged = set(capsys.readouterr().out.split()) - {"Training", "SAE:"}
    assert (tmp_path / "wandb.png").read_bytes().startswith(b"\x89PNG")
    page = (EXAMPLES.parent / "docs" / "judging.md").read_text(encoding="utf-8").partition("## Logged to wandb")[2]
    listed = set(re.findall(r"`([\w/]+(?:/\.\.\.)?)`", page))
    whole = {name for name in listed if not name.endswith("...")}
    families = {name.removesuffix("...") for name in listed if name.endswith("/...")}
    assert not {name for name in logged if name not in whole and not name.startswith(tuple(families))}
    # Of other architectures or settings.
    assert {name for name in whole if "/" in name} - logged == {"metrics/afa_threshold_scale"}
