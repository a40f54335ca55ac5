"""An SAE in other hands: from the Hub, from another machine's folder, and put to use in the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import SAEMetadata

import sae_lens_afa as afa
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.hub import load_saes
from sae_lens_afa.reports import evaluate_saes

HOOK = "blocks.1.hook_resid_pre"


def small(**metadata) -> TrainingSAE:
    sae = TrainingSAE.from_dict(afa.TopAFATrainingSAEConfig(d_in=192, d_sae=64).to_dict())
    about = {"hook_name": HOOK, "context_size": 32, "prepend_bos": True, **metadata}
    sae.cfg.metadata = SAEMetadata(**about)
    return sae


PUSH = f"""
from sae_lens.saes.sae import SAEMetadata
saes = {{name: make(d_in=192, d_sae=64) for name in ("early", "late")}}
for sae in saes.values():
    sae.cfg.metadata = SAEMetadata(
        hook_name={HOOK!r}, context_size=32, prepend_bos=True, model_name={str(model_folder())!r}, dataset_path="t.txt"
    )
afa.push_to_hub(saes, "me/two", private=False)
"""


@pytest.mark.slow
def test_an_sae_of_a_repository_is_judged_by_its_id(client):
    (client.cwd / "t.txt").write_text("\n\n".join(load_text().held_out[:5]))
    client.run(PUSH)
    for args in ((), ("--sae-id", "lat")):
        said = client.command("eval", "--release", "me/two", *args, status=1).last_line
        assert said.startswith("error: ")
        assert "early, late" in said
    done = client.command("eval", "--release", "me/two", "--sae-id", "late", "--tokens", "128", "--output", "judged")
    assert "explained variance" in done.output
    assert list(json.loads((client.cwd / "judged/metrics.json").read_text())["saes"]) == ["late"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"model_name": "/other/model", "dataset_path": "owner/text"},
            "model /other/model is not a folder",
        ),
        (
            {"model_name": str(model_folder()), "dataset_path": "/other/text"},
            "dataset /other/text: there is",
        ),
        ({"model_name": str(model_folder())}, "does not say its dataset_path: give dataset"),
    ],
)
def test_a_folder_of_another_machine_says_what_is_missing_here(tmp_path, metadata, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small(**metadata).save_inference_model("sae")
    cfg = json.loads(Path("sae/cfg.json").read_text())
    Path("sae/cfg.json").write_text(json.dumps({**cfg, "device": "cuda"}))  # of the machine that trained it
    with pytest.raises((ValueError, OSError), match=message) as raised:
        evaluate_saes(load_saes(["sae"]), "eval", tokens=128, progress=False)
    assert "\n" not in str(raised.value)
    assert not Path("eval").exists()


def test_steering_with_a_feature_adds_its_direction(model):
    sae = small().eval()
    tokens = model.to_tokens("And God said, Let there be light")
    x = model.run_with_cache(tokens)[1][HOOK]
    feature, by = 7, 5.0

    def more(acts, hook):
        acts[..., feature] += by
        return acts

    with torch.no_grad():
        seen = {}
        hooks = [
            (f"{HOOK}.hook_sae_acts_post", more),
            (f"{HOOK}.hook_sae_output", lambda value, hook: seen.update(out=value)),
        ]
        steered = model.run_with_hooks_with_saes(tokens, saes=[sae], fwd_hooks=hooks)
        plain = model.run_with_saes(tokens, saes=[sae])
        direction = by * sae.W_dec[feature] * x.std(-1, keepdim=True)
        torch.testing.assert_close(seen["out"], sae(x) + direction, atol=1e-4, rtol=1e-4)  # float32, values of about 10
    assert not torch.allclose(steered, plain)
    assert torch.equal(model(tokens), model(tokens))
    assert isinstance(sae, SAE)
