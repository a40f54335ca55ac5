"""SAEs by folder and training checkpoint, and what is wrong with a folder in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file

import sae_lens_afa as afa
from sae_lens_afa.loading.saes import load_sae, shared_metadata

CONFIGS = {
    "top_afa": afa.TopAFATrainingSAEConfig,
    "afa_threshold": afa.AFAThresholdTrainingSAEConfig,
    "mutual_choice": afa.MutualChoiceTrainingSAEConfig,
    "feature_choice": afa.FeatureChoiceTrainingSAEConfig,
    "topk": TopKTrainingSAEConfig,
    "batchtopk": BatchTopKTrainingSAEConfig,
}


def training_sae(architecture: str, **fields) -> TrainingSAE:
    settings = {"d_in": 8, "d_sae": 16, **fields}
    if architecture not in ("top_afa", "afa_threshold"):
        settings["k"] = 4
    sae = TrainingSAE.from_dict(CONFIGS[architecture](**settings).to_dict())
    sae.cfg.metadata = SAEMetadata(hook_name="blocks.1.hook_resid_pre", context_size=16)
    return sae


@pytest.fixture
def folder(tmp_path) -> Path:
    training_sae("top_afa").save_inference_model(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_a_checkpoint_is_loaded_as_it_would_be_saved(tmp_path, architecture, normalize):
    sae = training_sae(architecture, normalize_activations=normalize)
    sae.save_model(tmp_path)
    scaler = ActivationScaler(scaling_factor=3.0 if normalize != "none" else None)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    loaded = load_sae(tmp_path)
    assert not isinstance(loaded, TrainingSAE)
    assert loaded.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
    if normalize != "none":
        sae.fold_activation_norm_scaling_factor(3.0)
    sae.save_inference_model(tmp_path / "whole")
    expected = SAE.load_from_disk(tmp_path / "whole")
    x = torch.randn(5, 8)
    assert torch.equal(loaded(x), expected(x))
    assert loaded.cfg.architecture() == expected.cfg.architecture()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def without(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def edited(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES = {
    "truncated weights": (lambda f: cut(f / "sae_weights.safetensors"), "is not a whole safetensors file"),
    "garbled weights": (
        lambda f: (f / "sae_weights.safetensors").write_bytes(b"x" * 500),
        "is not a whole safetensors file",
    ),
    "a tensor less": (lambda f: without(f / "sae_weights.safetensors", "W_dec"), "W_dec"),
    "other shape": (lambda f: edited(f / "cfg.json", d_sae=17), r"W_enc has shape \[8, 16\].*asks for \[8, 17\]"),
    "broken config": (lambda f: (f / "cfg.json").write_text("{"), "cfg.json is not JSON"),
    "a list as config": (lambda f: (f / "cfg.json").write_text("[]"), "must hold an object, it holds a list"),
    "unknown architecture": (lambda f: edited(f / "cfg.json", architecture="new"), "architecture 'new', which is not"),
    "a width as text": (lambda f: edited(f / "cfg.json", d_in="8"), "d_in in cfg.json must be an integer"),
    "no width": (lambda f: edited(f / "cfg.json", d_in=None), "d_in in cfg.json must be an integer"),
    "a wrong field": (lambda f: edited(f / "cfg.json", normalize_activations="x"), "normalize_activations"),
    "no weights": (lambda f: (f / "sae_weights.safetensors").unlink(), "has no sae_weights.safetensors"),
    "no config": (lambda f: (f / "cfg.json").unlink(), "has no cfg.json"),
}


@pytest.mark.parametrize("form", ["inference", "training"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_that_names_it(tmp_path, damage, form):
    sae = training_sae("mutual_choice" if form == "training" else "top_afa")
    (sae.save_model if form == "training" else sae.save_inference_model)(tmp_path / "sae")
    harm, message = DAMAGES[damage]
    if form == "training" and damage == "other shape":
        message = "does not fit"
    harm(tmp_path / "sae")
    with pytest.raises((ValueError, OSError), match=message) as raised:
        load_sae(tmp_path / "sae")
    assert str(raised.value).startswith(str(tmp_path / "sae"))
    assert "\n" not in str(raised.value)


def test_a_path_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; give the folder of a saved SAE"):
        load_sae(tmp_path / "nowhere")


def test_metadata_that_saes_share(folder):
    saes = {"a": load_sae(folder), "b": load_sae(folder)}
    assert shared_metadata(saes, "context_size") == 16
    assert shared_metadata(saes, "prepend_bos", default=True) is True
    saes["b"].cfg.metadata.context_size = 32
    with pytest.raises(ValueError, match="trained with different context_size"):
        shared_metadata(saes, "context_size")
