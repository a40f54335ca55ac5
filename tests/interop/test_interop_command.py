"""`export` and `convert`: where activations come from, what is refused first, what is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from interop_helpers import build, tokens
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from safetensors.torch import save_file
from test_reference_checkpoint import BATCHTOPK, TOPK, checkpoint

from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.interop import export_jumprelu, jumprelu_report
from sae_lens_afa.interop.command import ExportRequest, convert_command, export_command, read_activations

METADATA = {"hook_name": "blocks.1.hook_resid_pre", "context_size": 32, "prepend_bos": True, "model_name": "kjv"}


@pytest.fixture
def sae(tmp_path) -> Path:
    build(d_in=192, d_sae=64, metadata=SAEMetadata(**METADATA)).save_model(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def small(tmp_path) -> Path:
    build().save_model(tmp_path / "small")
    return tmp_path / "small"


def export(output: Path, **options):
    return export_command(ExportRequest(output=output, **options), progress=False)


def test_a_file_of_activations_gives_what_the_tensor_gives(small, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lens_afa.interop.command._ROWS", 300)
    save_file({"activations": tokens(), "other": torch.zeros(3)}, tmp_path / "acts.safetensors")
    result = export(tmp_path / "out", sae=small, activations=tmp_path / "acts.safetensors")
    loaded, expected = SAE.load_from_disk(result.folder), export_jumprelu(build(), tokens())
    assert torch.equal(loaded.threshold, expected.threshold)
    assert result.report == jumprelu_report(loaded) == jumprelu_report(expected)
    assert "SAE.load_from_disk" in str(result)
    assert "Jaccard" in str(result)
    assert {path.name for path in result.folder.iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_the_demo_s_model_and_text(sae, tmp_path):
    result = export(tmp_path / "out", sae=sae, demo=True, tokens=1280)
    report = result.report
    assert report.n_calibration_tokens + report.n_evaluation_tokens == 1280
    assert report.cross_entropy is not None
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        export(tmp_path / "out", sae=sae, demo=True)
    assert export(tmp_path / "out", sae=sae, demo=True, tokens=1280, overwrite=True).report == report


def test_the_first_of_the_demo_s_saes_is_the_default(sae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run `sae-lens-afa demo` first"):
        export(tmp_path / "out", demo=True, tokens=640)
    for name in ("demo", "demo-afa_threshold"):
        shutil.copytree(sae, tmp_path / "runs" / name)
    result = export(tmp_path / "out", demo=True, tokens=640)
    assert SAE.load_from_disk(result.folder).cfg.architecture() == "jumprelu"


def test_a_text_that_ends_early_is_used_as_far_as_it_goes(sae, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(load_text().held_out[:30]))
    options = {"sae": sae, "model": str(model_folder()), "dataset": str(text), "tokens": 10**7}
    report = export(tmp_path / "out", **options).report
    assert 640 < report.n_calibration_tokens + report.n_evaluation_tokens < 10**5
    text.write_text("In the beginning. " * 10)
    with pytest.raises(ValueError, match=r"the text ends after 32 tokens, before the 8192 of the cross-entropy"):
        export(tmp_path / "short", **options)
    with pytest.raises(ValueError, match="too few activations: 0 tokens"):
        export(tmp_path / "short", **{**options, "tokens": 100})
    assert not (tmp_path / "short").exists()


def test_another_hook(sae, tmp_path):
    result = export(tmp_path / "out", sae=sae, demo=True, tokens=640, hook="blocks.2.hook_resid_pre")
    assert SAE.load_from_disk(result.folder).cfg.metadata.hook_name == "blocks.2.hook_resid_pre"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to export: give --sae PATH, or --demo"),
        ({"activations": "acts"}, "nothing to export: give --sae PATH."),
        ({"sae": "small", "activations": "acts", "demo": True, "hook": "x"}, "leave out --demo, --hook"),
        ({"sae": "small", "activations": "acts", "device": "nonsense"}, "device 'nonsense' cannot be used"),
        ({"sae": "small", "activations": "none"}, "none is not a file; give a .safetensors file"),
        ({"sae": "small", "activations": "text"}, "is not a whole .safetensors file"),
        ({"sae": "small", "activations": "several"}, "must hold one tensor, or one of the name 'activations'.* a, b"),
        ({"sae": "small", "activations": "wide"}, r"d_in = 16 on its last axis, got \[100, 17\]"),
        ({"sae": "small", "activations": "scalar"}, "too few activations: 0 tokens"),
        ({"sae": "standard", "activations": "acts"}, "takes top_afa, afa_threshold, topk SAEs, got 'standard'"),
        (
            {"sae": "standard", "model": "no such model", "dataset": "x"},
            "takes top_afa, afa_threshold, topk SAEs, got 'standard'",
        ),
        ({"sae": "small", "demo": True, "tokens": 0}, "--tokens must be at least 1"),
        ({"sae": "small", "demo": True}, "d_in is 16, but activations at"),
        ({"sae": "small"}, "does not say its dataset_path: give --dataset"),
        ({"sae": "nowhere", "demo": True}, "is not a folder; give the folder of a saved SAE"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(small, tmp_path, options, message):
    standard = StandardSAE(StandardSAEConfig(d_in=192, d_sae=8, metadata=SAEMetadata(**METADATA)))
    standard.save_model(tmp_path / "standard")
    save_file({"x": tokens()}, tmp_path / "acts")
    save_file({"a": tokens(9), "b": tokens(9)}, tmp_path / "several")
    save_file({"x": tokens(100, d_in=17)}, tmp_path / "wide")
    save_file({"x": torch.tensor(1.0)}, tmp_path / "scalar")
    (tmp_path / "text").write_text("In the beginning")
    options = {key: tmp_path / value if key in ("sae", "activations") else value for key, value in options.items()}
    with pytest.raises((ValueError, OSError), match=message) as raised:
        export(tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_heads_are_read_from_a_file(tmp_path):
    save_file({"z": tokens().reshape(-1, 4, 4)}, tmp_path / "z.safetensors")
    assert torch.equal(torch.cat(list(read_activations(tmp_path / "z.safetensors"))).flatten(1), tokens())


def test_a_checkpoint_is_converted(tmp_path):
    checkpoint(tmp_path / "in", TOPK)
    result = convert_command(tmp_path / "in", tmp_path / "out")
    assert result.report is None
    assert str(result).startswith(f"saved in {tmp_path / 'out'}")


def test_a_batchtopk_checkpoint_is_converted_with_a_file(tmp_path):
    t = checkpoint(tmp_path / "in", BATCHTOPK)
    save_file({"x": t["x"]}, tmp_path / "x.safetensors")
    result = convert_command(tmp_path / "in", tmp_path / "out", activations=tmp_path / "x.safetensors")
    assert result.report.thresholds == "global"
    assert "active sets" in str(result)
