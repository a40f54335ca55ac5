"""Folders on this computer: what `load`, `list_saes` and `info` make of them, without a Hub."""

import json
import shutil

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

import sae_lens_afa as afa


@pytest.fixture
def folder(tmp_path):
    cfg = afa.TopAFATrainingSAEConfig(d_in=6, d_sae=20, metadata=SAEMetadata(model_name="gpt2", hook_name="h"))
    afa.TopAFATrainingSAE(cfg).save_inference_model(tmp_path / "top")
    StandardSAE(StandardSAEConfig(d_in=6, d_sae=9)).save_model(tmp_path / "deep/er")
    (tmp_path / "empty").mkdir()
    return tmp_path


def edit(folder, **changes):
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, **changes}))


def test_ids_are_relative_folders(folder):
    assert afa.list_saes(folder) == ["deep/er", "top"]
    assert afa.list_saes(folder / "top") == ["."]
    assert isinstance(afa.load(folder, "deep/er"), StandardSAE)
    assert isinstance(afa.load(folder / "top"), afa.TopAFASAE)
    assert isinstance(afa.load(str(folder / "top"), "."), afa.TopAFASAE)


def test_info(folder):
    (folder / "top/afa_metrics.json").write_text(json.dumps({"version": 1, "l0_mean": 3.25}))
    about = afa.hub.info(folder)
    assert about.commit is None
    assert set(about.saes) == {"deep/er", "top"}
    assert about.saes["top"].metrics == {"l0_mean": 3.25}
    text = str(about)
    assert text.startswith(f"{folder}: 2 SAEs\n")
    rows = [line.split() for line in text.splitlines()]
    for said in (["architecture", "top_afa"], ["afa_coefficient", "0.03125"], ["L0", "3.25"]):
        assert said in rows
    assert "gpt2" in text
    assert set(afa.hub.info(folder, "top").saes) == {"top"}


def test_info_counts_the_tokens_that_its_figures_leave_out(folder):
    for left_out, shown in ((12_345, ["tokens", "left", "out", "(NaN,", "infinity)", "12,345"]), (0, None)):
        metrics = {"version": 1, "l0_mean": 3.25, "n_nonfinite": left_out}
        (folder / "top/afa_metrics.json").write_text(json.dumps(metrics))
        rows = [line.split() for line in str(afa.hub.info(folder, "top")).splitlines() if "left out" in line]
        assert rows == ([shown] if shown else [])


def test_info_reads_an_architecture_that_only_another_package_knows_and_load_names_it(folder):
    edit(folder / "top", architecture="their_sae")
    assert "their_sae" in str(afa.hub.info(folder, "top"))
    with pytest.raises(ValueError, match="architecture 'their_sae', which is not registered"):
        afa.load(folder, "top")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metadata": [1]}, r"metadata in cfg.json must be an object, got \[1\]"),
        ({"sae_lens_version": "latest"}, "sae_lens_version in cfg.json is no version: 'latest'"),
        ({"d_in": None}, "d_in in cfg.json must be an integer >= 1, got None"),
        ({"architecture": ["top_afa"]}, r"has architecture \['top_afa'\], which is not registered"),
        ({"architecture": None}, "has architecture None, which is not registered"),
    ],
)
def test_an_edited_config_is_named(folder, changes, says):
    edit(folder / "top", **changes)
    with pytest.raises(ValueError, match=f"top: {says}|top {says}"):
        afa.load(folder, "top")


def test_a_config_of_an_older_saelens_gets_the_fields_that_it_left_out(folder):
    cfg = {"d_in": 6, "d_sae": 9, "dtype": "float32", "model_name": "gpt2", "hook_point": "blocks.1.hook_resid_pre"}
    (folder / "deep/er/cfg.json").write_text(json.dumps(cfg))
    about = str(afa.hub.info(folder, "deep/er"))
    for said in ("standard", "gpt2", "blocks.1.hook_resid_pre"):
        assert said in about


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda f: afa.load(f), ValueError, r"holds 2 SAEs, say which by sae_id: deep/er, top"),
        (lambda f: afa.load(f, "no"), ValueError, r"has no SAE 'no'; it has: deep/er, top"),
        (lambda f: afa.load(f / "empty"), ValueError, r"holds no SAE \(a folder with cfg.json and sae_weights"),
        (lambda f: afa.load(f / "missing"), FileNotFoundError, r"neither a folder here nor a repository"),
        (lambda f: afa.load(f, "top", revision="main"), ValueError, r"revision='main' is for the Hub"),
        (lambda f: afa.load(f, "top", dtype="int8"), ValueError, r"dtype must be one of .*, got 'int8'"),
    ],
)
def test_wrong_requests(folder, call, error, says):
    with pytest.raises(error, match=says):
        call(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"d_sae": 21}, r"W_enc has shape \[6, 20\] in sae_weights.safetensors, cfg.json asks for \[6, 21\]"),
        ({"d_in": 5}, r"W_enc has shape \[6, 20\] .* asks for \[5, 20\]"),
        ({"architecture": "gated"}, r"sae_weights.safetensors does not fit 'gated'"),
        ({"architecture": "none"}, r"architecture 'none', which is not registered: import the package .* standard"),
        ({"normalize_activations": "no"}, r"cfg.json is no config of 'top_afa'"),
        ({"d_sae": None}, r"d_sae in cfg.json must be an integer >= 1, got None"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit(folder, changes, says):
    edit(folder / "top", **changes)
    with pytest.raises(ValueError, match=says):
        afa.load(folder, "top")


def test_weights_in_half_precision_stay_so(folder):
    sae = afa.load(folder, "top", dtype="bfloat16")
    shutil.rmtree(folder / "top")
    sae.save_model(folder / "top")
    edit(folder / "top", dtype="float32")  # as SAE.to leaves it
    assert afa.load(folder, "top").W_dec.dtype == torch.bfloat16


def test_a_training_checkpoint_is_named_as_what_it_is(tmp_path):
    BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)).save_model(tmp_path)
    with pytest.raises(ValueError, match=r"is a training checkpoint of architecture 'batchtopk': load it with"):
        afa.load(tmp_path)


def test_a_truncated_file(folder):
    weights = folder / "top/sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is not a whole safetensors file"):
        afa.load(folder, "top")
