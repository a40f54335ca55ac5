"""Stand-ins as folders: where activations come from, what is refused first, what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interop_helpers import build, tokens
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from safetensors.torch import save_file

from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.interop import export_jumprelu, export_to_folder, jumprelu_report

METADATA = {"hook_name": "blocks.1.hook_resid_pre", "context_size": 32, "prepend_bos": True, "model_name": "kjv"}


def wide():
    return build(d_in=192, d_sae=64, metadata=SAEMetadata(**METADATA))


@pytest.fixture(scope="module")
def judged_on(model, tmp_path_factory):
    """The bundled model and a file of its text."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(load_text().held_out[:7]))
    return {"model": model, "dataset": str(text)}


def export(sae, output: Path, **options):
    return export_to_folder(sae, output, progress=False, **options)


def test_a_file_of_activations_gives_what_the_tensor_gives(tmp_path):
    build().save_model(tmp_path / "small")
    save_file({"activations": tokens(), "other": torch.zeros(3)}, tmp_path / "acts.safetensors")
    report = export(tmp_path / "small", tmp_path / "out", activations=tmp_path / "acts.safetensors")
    loaded, expected = SAE.load_from_disk(tmp_path / "out"), export_jumprelu(build(), tokens())
    assert torch.equal(loaded.threshold, expected.threshold)
    assert report == jumprelu_report(loaded) == jumprelu_report(expected)
    assert "Jaccard" in str(report)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_a_folder_and_an_sae_a_model_and_its_name_give_the_same(tmp_path, judged_on):
    wide().save_model(tmp_path / "sae")
    report = export(wide(), tmp_path / "out", tokens=1280, **judged_on)
    assert report.n_calibration_tokens + report.n_evaluation_tokens == 1280
    assert report.cross_entropy is not None
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export(wide(), tmp_path / "out", **judged_on)
    names = {**judged_on, "model": str(model_folder())}
    assert export(str(tmp_path / "sae"), tmp_path / "out", tokens=1280, overwrite=True, **names) == report


def test_a_text_that_ends_early_is_used_as_far_as_it_goes(tmp_path, judged_on):
    report = export(wide(), tmp_path / "out", tokens=10_000, **judged_on)
    assert 640 < report.n_calibration_tokens + report.n_evaluation_tokens < 5_000
    (tmp_path / "short.txt").write_text("In the beginning. " * 10)
    options = {**judged_on, "dataset": str(tmp_path / "short.txt")}
    with pytest.raises(ValueError, match=r"the text ends after 32 tokens, before the 8192 of the cross-entropy"):
        export(wide(), tmp_path / "short", tokens=10**7, **options)
    with pytest.raises(ValueError, match="too few activations: 0 tokens"):
        export(wide(), tmp_path / "short", tokens=100, **options)
    assert not (tmp_path / "short").exists()


def test_another_hook(tmp_path, judged_on):
    sae = wide()
    export(sae, tmp_path / "out", tokens=640, hook="blocks.2.hook_resid_pre", **judged_on)
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.hook_name == "blocks.2.hook_resid_pre"
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"


NAMED = {"model": "no such model", "dataset": "x"}


@pytest.mark.parametrize(
    ("sae", "options", "message"),
    [
        ("small", {"activations": "acts", "hook": "x", "dataset": "x"}, "^activations are .* leave out dataset, hook"),
        ("small", {"activations": "acts", "device": "nonsense"}, "device 'nonsense' cannot be used"),
        ("small", {"activations": "none"}, "^activations .*none is not a file; give a .safetensors file"),
        ("small", {"activations": "text"}, "is not a whole .safetensors file"),
        ("small", {"activations": "several"}, "must hold one tensor, or one of the name 'activations'.* a, b"),
        ("small", {"activations": "wide"}, r"d_in = 16 on its last axis, got \[100, 17\]"),
        ("small", {"activations": "scalar"}, "too few activations: 0 tokens"),
        ("standard", {"activations": "acts"}, "takes top_afa, afa_threshold, afa_pursuit, topk SAEs, got 'standard'"),
        ("standard", NAMED, "takes top_afa, afa_threshold, afa_pursuit, topk SAEs, got 'standard'"),
        ("small", {"tokens": 0}, "^tokens must be at least 1"),
        ("small", {}, "does not say its dataset_path: give dataset"),
        ("small", {"dataset": "text.txt", "model": "demo"}, "d_in is 16, but activations at"),
        ("nowhere", {}, "^sae .*nowhere is not a folder; give the folder of a saved SAE"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(tmp_path, judged_on, sae, options, message):
    build().save_model(tmp_path / "small")
    StandardSAE(StandardSAEConfig(d_in=192, d_sae=8, metadata=SAEMetadata(**METADATA))).save_model(
        tmp_path / "standard"
    )
    save_file({"x": tokens()}, tmp_path / "acts")
    save_file({"a": tokens(9), "b": tokens(9)}, tmp_path / "several")
    save_file({"x": tokens(100, d_in=17)}, tmp_path / "wide")
    save_file({"x": torch.tensor(1.0)}, tmp_path / "scalar")
    (tmp_path / "text").write_text("In the beginning")
    options = {key: tmp_path / value if key == "activations" else value for key, value in options.items()}
    if options.get("model") == "demo":
        options |= judged_on
    with pytest.raises((ValueError, OSError), match=message) as raised:
        export(tmp_path / sae, tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
