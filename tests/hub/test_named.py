"""SAEs by the name of a folder, of a release and of a repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sae_lens_afa as afa
from sae_lens_afa.hub import load_saes


def save(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=16)).save_inference_model(folder)
    return folder


def test_folders_of_one_name_are_told_apart(tmp_path):
    x, y = save(tmp_path / "x" / "sae", 0), save(tmp_path / "y" / "sae", 1)
    saes = load_saes([x, str(y)])
    assert list(saes) == ["sae", str(y)]
    for folder, sae in zip((x, y), saes.values(), strict=True):
        assert torch.equal(sae.W_dec, afa.load(folder).W_dec)


@pytest.mark.parametrize(
    ("release", "sae_ids", "message"),
    [
        (None, ["x"], "^sae_id names an SAE of a release: give release too"),
        ("gpt2-small-res-jbb", ["x"], "^release 'gpt2-small-res-jbb' is not known.*near matches: gpt2-small-res-jb,"),
        ("gpt2-small-res-jb", [], "^release gpt2-small-res-jb needs sae_id, one of 13: blocks.0.hook_resid_pre"),
        (
            "gpt2-small-res-jb",
            ["blocks.6.hook_resid_pr"],
            r"^sae_id 'blocks.6.hook_resid_pr' is not in release .*-jb; near matches: blocks\.6\.hook_resid_pre",
        ),
    ],
)
def test_unknown_releases_and_ids_are_one_line_with_near_ones(release, sae_ids, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_saes((), release, sae_ids)
    assert "\n" not in str(raised.value)


def test_folders_without_an_sae_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^sae .*nowhere is not a folder"):
        load_saes([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"^sae .*empty has no cfg.json, sae_weights.safetensors"):
        load_saes([tmp_path / "empty"])


@pytest.mark.slow
def test_saes_of_a_repository(client):
    done = client.run("""
        from sae_lens_afa.hub import load_saes
        afa.push_to_hub({"early": make(0), "late": make(1)}, "me/two")
        afa.push_to_hub({"only": make(2)}, "me/one")
        make(3).save_inference_model("here")
        saes = load_saes(["here"], "me/two", ["late"])
        print(list(saes), [torch.equal(sae.W_dec, make(seed).W_dec) for sae, seed in zip(saes.values(), (3, 1))])
        print(list(load_saes((), "me/one")))
    """)
    assert done.output.strip().splitlines()[-2:] == ["['here', 'late'] [True, True]", "['only']"]
    load = 'from sae_lens_afa.hub import load_saes; load_saes((), "me/two", {})'
    assert client.error(load.format([])) == "release me/two needs sae_id, one of 2: early, late"
    said = "sae_id 'lat' is not in release me/two; near matches: late; give one of 2: early, late"
    assert client.error(load.format(["lat"])) == said
