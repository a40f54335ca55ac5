"""SAEs that were judged are pushed, listed, described and pulled with `sae-lens-afa`, against the local Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sae_lens_afa as afa
from sae_lens_afa.demo import load_text
from sae_lens_afa.loading.text import text_dataset


@pytest.fixture(scope="module")
def judged(tmp_path_factory, model) -> Path:
    """A folder of two SAEs, their evaluation, and activations."""
    folder = tmp_path_factory.mktemp("judged")
    torch.manual_seed(0)
    save_file({"activations": torch.randn(3000, 192)}, folder / "acts.safetensors")
    saes = {}
    for name in ("first", "second"):
        saes[name] = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=192, d_sae=64, decoder_init_norm=0.5))
        about = saes[name].cfg.metadata
        about.hook_name, about.context_size, about.prepend_bos = "blocks.1.hook_resid_pre", 32, True
        about.model_name, about.dataset_path = "gpt2-small", "Skylion007/openwebtext"
        saes[name].save_inference_model(folder / "runs" / name)
    text = text_dataset(load_text().held_out[:3], name="owner/held-out")
    afa.reports.evaluate_saes(saes, folder / "evaluation", model=model, dataset=text, tokens=512, progress=False)
    return folder


@pytest.fixture(autouse=True)
def _judged_here(judged, client) -> None:
    shutil.copytree(judged, client.cwd, dirs_exist_ok=True)


def test_push_list_info_pull(client, hub):
    pushed = client.command(
        "push", "me/saes", "--sae", "runs/first", "--sae", "layer/6=runs/second", "--metrics", "evaluation",
        "--license", "mit", "--tag", "v1", "--message", "Two SAEs", "--base-model", "owner/model",
    )  # fmt: skip
    assert pushed.last_line == f"{hub.url}/me/saes/commit/{hub.repos['me/saes'].refs['main']}"
    assert hub.repos["me/saes"].log[-1]["title"] == "Two SAEs"
    assert client.command("list", "me/saes").output.split() == ["first", "layer/6"]
    about = client.command("info", "me/saes", "--sae-id", "layer/6", "--revision", "v1").output
    for said in ("me/saes at commit", ": 1 SAE", "layer/6", "top_afa", "blocks.1.hook_resid_pre", "over-activated"):
        assert said in about
    assert client.command("pull", "me/saes", "--output", "here", "--sae-id", "first").last_line == "here/first"
    assert client.command("info", "here").output.startswith("here: 1 SAE\n")
    metrics = json.loads(hub.file("me/saes", "layer/6/afa_metrics.json"))
    assert metrics["dataset"] == "owner/held-out"
    assert metrics["l0_mean"] > 0
    assert hub.file("me/saes", "layer/6/zf_plot.png").startswith(b"\x89PNG")
    card = hub.file("me/saes", "README.md").decode()
    assert "type: owner/held-out" in card
    assert "owner/model" in card
    assert "![ZF plot of layer/6](layer/6/zf_plot.png)" in card


def test_push_with_jumprelu(client, hub):
    client.command(
        "push", "me/saes", "--sae", "runs/first", "--with-jumprelu", "--activations", "acts.safetensors", "--private"
    )
    assert client.command("list", "me/saes").output.split() == ["first", "first-jumprelu"]
    assert hub.repos["me/saes"].private
    card = hub.file("me/saes", "README.md").decode()
    assert "An approximation: its own fixed threshold for each feature" in card
    loaded = client.run("""
        from sae_lens import SAE
        sae, original = (SAE.from_pretrained("me/saes", name) for name in ("first-jumprelu", "first"))
        x = torch.randn(100, 192)
        agree = (sae.encode(x) > 0) == (original.encode(x) > 0)
        print(type(sae).__name__, agree.float().mean().item() > 0.8)
    """)
    assert loaded.last_line == "JumpReLUSAE True"


@pytest.mark.slow
def test_push_with_jumprelu_of_the_demo_s_model(client):
    client.command("push", "me/saes", "--sae", "runs/first", "--with-jumprelu", "--demo", "--dataset", "owner/text")
    assert client.command("list", "me/saes").output.split() == ["first", "first-jumprelu"]


def test_errors_are_one_line(client):
    shutil.copytree(client.cwd / "runs/first", client.cwd / "runs/third")
    third = ("push", "me/saes", "--sae", "runs/third")
    for args, says in {
        ("list", "me/none"): "error: cannot read me/none: there is no such repository",
        ("push", "me/saes", "--sae", "runs"): "error: runs (runs) has no cfg.json",
        ("push", "me/saes", "--sae", "a=runs/first", "--sae", "a=runs/second"): "error: 'a=runs/second' needs an id",
        ("push", "me/saes", "--sae", "runs/first", "--metrics", "runs"): "error: runs has no metrics.json",
        (*third, "--demo"): "error: a calibration is for --with-jumprelu",
        (*third, "--activations", "acts.safetensors"): "error: a calibration is for --with-jumprelu",
        (*third, "--with-jumprelu", "--demo", "--activations", "a"): "error: --activations are read as they are: leave",
        (*third, "--metrics", "evaluation"): "error: --metrics evaluation has metrics of first, second, none of which",
    }.items():
        output = client.command(*args, status=1).output
        assert output.startswith(says), output
        assert output.count("\n") == 1


def test_a_token_is_not_a_flag(client):
    assert "No such option" in client.command("push", "me/saes", "--sae", "a", "--token", "x", status=2).output
