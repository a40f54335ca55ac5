"""`eval` and `plot`: what is checked first, what is written, and that nothing is written by halves."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from sae_lens_afa import AFAResult, TopAFASAE, TopAFASAEConfig
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.evals.command import EvalRequest, eval_command, plot_command
from sae_lens_afa.evals.report import read_report

HOOK = "blocks.1.hook_resid_pre"


def save(folder: Path, *, config=StandardSAEConfig, seed: int = 0, **metadata) -> Path:
    torch.manual_seed(seed)
    about = {"hook_name": HOOK, "context_size": 32, "prepend_bos": True, "model_name": "kjv", **metadata}
    sae_class = TopAFASAE if config is TopAFASAEConfig else StandardSAE
    sae_class(config(d_in=192, d_sae=64, metadata=SAEMetadata(**about))).save_model(folder)
    return folder


@pytest.fixture
def sae(tmp_path) -> Path:
    return save(tmp_path / "sae")


def evaluate(output: Path, *saes: Path, **options):
    request = {"demo": True, "tokens": 128, "batch_size_prompts": 2, **options}
    return eval_command(EvalRequest(output=output, sae=saes, **request), progress=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """Two SAEs, judged."""
    folder = tmp_path_factory.mktemp("command")
    saes = save(folder / "a"), save(folder / "b", config=TopAFASAEConfig, seed=1)
    evaluate(folder / "out", *saes, outlier_norm_multiple=1.5)
    return folder / "out"


def test_metrics_plots_and_what_they_are_drawn_from_are_written(evaluated):
    plots = {f"{name}.{suffix}" for name in ("zf", "eps_lbo", "l0") for suffix in ("png", "html")}
    assert {path.name for path in evaluated.iterdir()} == {"metrics.json", "plot_data.parquet", *plots}
    data = json.loads((evaluated / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert data["version"] == 1
    assert list(data["saes"]) == ["a", "b"]
    assert data["saes"]["b"]["architecture"] == "top_afa"
    assert data["saes"]["a"]["hook_name"] == HOOK
    assert data["saes"]["a"]["figures"]["n_tokens"] == 128
    assert data["saes"]["a"]["figures"]["without_outliers_n_tokens"] <= 128
    assert data["settings"]["tokens"] == 128
    assert "endoftext" in (evaluated / "zf.html").read_text()  # contexts, for hovering


def test_the_report_reads_back_and_prints_as_a_table(evaluated):
    report = read_report(evaluated)
    assert all(isinstance(result, AFAResult) for result in report.results.values())
    text = str(report)
    assert text.splitlines()[0].split() == ["a", "b"]
    assert "without tokens of a norm above" in text


def test_plots_are_redrawn_from_the_files(evaluated, tmp_path):
    files = plot_command(evaluated, output=tmp_path / "new", formats=["svg"])
    assert sorted(path.name for path in files) == ["eps_lbo.svg", "l0.svg", "zf.svg"]
    assert all(path.stat().st_size > 1000 for path in files)


def test_every_token_is_written_on_request(sae, tmp_path):
    report = evaluate(tmp_path / "out", sae, per_token=True)
    tokens = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    assert len(tokens) == report.results["sae"].n_tokens == 128
    assert {"sae", "dense_norm", "epsilon_lbo", "context", "position"} <= set(tokens.columns)
    # A new evaluation does not leave the old one's tokens behind.
    evaluate(tmp_path / "out", sae, overwrite=True)
    assert not (tmp_path / "out" / "tokens.parquet").exists()


def test_model_folder_and_text_file_stand_for_names(sae, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(load_text().held_out[:5]))
    report = evaluate(tmp_path / "out", sae, demo=False, model=str(model_folder()), dataset=str(text))
    demo = evaluate(tmp_path / "demo", sae)
    assert report.results == demo.results
    with_positions = evaluate(
        tmp_path / "last", sae, demo=False, model=str(model_folder()), dataset=str(text), tokens=4, positions=[-1]
    )
    assert with_positions.results["sae"].n_tokens == 4


def test_loss_against_l0_is_drawn_of_saes_that_compare(sae, tmp_path):
    elsewhere = save(tmp_path / "elsewhere", hook_name="blocks.2.hook_resid_pre")
    beside = save(tmp_path / "beside", seed=1)
    assert (evaluate(tmp_path / "out", sae, beside).folder / "l0.png").exists()
    # The picture of an evaluation that is replaced goes with it.
    assert not (evaluate(tmp_path / "out", sae, elsewhere, overwrite=True).folder / "l0.png").exists()


def test_jsonl_text_and_another_hook(sae, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": chapter}) for chapter in load_text().held_out[:5]))
    options = {"demo": False, "model": str(model_folder()), "dataset": str(text)}
    report = evaluate(tmp_path / "out", sae, hook="blocks.2.hook_resid_pre", **options)
    assert report.described["sae"]["hook_name"] == "blocks.2.hook_resid_pre"


def test_the_demo_s_sae_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no demo SAE in runs.demo: run `sae-lens-afa demo` first"):
        evaluate(tmp_path / "out")
    save(tmp_path / "runs" / "demo")
    assert list(evaluate(tmp_path / "out").results) == ["demo"]
    save(tmp_path / "runs" / "demo-afa_threshold", seed=1)
    assert list(evaluate(tmp_path / "both").results) == ["demo", "demo-afa_threshold"]


# ---- refused before any work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demo": False}, "nothing to judge: give --sae PATH"),
        ({"saes": True, "sae_id": ["x"]}, "give --release too"),
        ({"demo": False, "release": "gpt2-small-res-jbb", "sae_id": ["x"]}, "near matches: gpt2-small-res-jb,"),
        ({"demo": False, "release": "gpt2-small-res-jb"}, "needs --sae-id, one of 13: blocks.0.hook_resid_pre"),
        (
            {"demo": False, "release": "gpt2-small-res-jb", "sae_id": ["blocks.6.hook_resid_pr"]},
            r"is not in release gpt2-small-res-jb; near matches: blocks\.6\.hook_resid_pre",
        ),
        ({"saes": True, "tokens": 0}, "--tokens must be at least 1, got 0"),
        ({"saes": True, "context_size": 0}, "--context-size must be at least 1"),
        ({"saes": True, "outlier_norm_multiple": -1.0}, "--outlier-norm-multiple must be > 0"),
        ({"saes": True, "device": "nonsense"}, "device 'nonsense' cannot be used here: .*Try --device cpu"),
        ({"saes": True, "model": "gpt2"}, "--demo has its own model and text"),
        ({"saes": True, "demo": False, "model": "gpt2x", "dataset": "t.txt"}, "--model 'gpt2x' cannot be loaded.*gpt2"),
        ({"saes": True, "demo": False}, "does not say its dataset_path: give --dataset"),
        ({"saes": True, "hook": "blocks.9.hook_resid_pre"}, "no hook 'blocks.9.hook_resid_pre'; did you mean"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(sae, tmp_path, options, message):
    saes = [sae] if options.pop("saes", False) else []
    (tmp_path / "t.txt").write_text("In the beginning\n\n")
    options = {name: str(tmp_path / "t.txt") if value == "t.txt" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message) as raised:
        evaluate(tmp_path / "out", *saes, **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_folders_without_an_sae_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        evaluate(tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no cfg.json, sae_weights.safetensors"):
        evaluate(tmp_path / "out", tmp_path / "empty")


def test_an_output_that_cannot_be_written_is_found_out_first(sae, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file is not a writable folder"):
        evaluate(tmp_path / "file" / "out", sae)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        evaluate(tmp_path / "out", sae)


def test_saes_that_disagree_about_the_context_are_asked_about(sae, tmp_path):
    other = save(tmp_path / "other", context_size=64)
    with pytest.raises(ValueError, match="different context_size"):
        evaluate(tmp_path / "out", sae, other)
    assert evaluate(tmp_path / "out", sae, other, context_size=16).settings["context_size"] == 16


def test_folders_of_one_name_are_told_apart(tmp_path):
    saes = [save(tmp_path / name / "sae") for name in "xy"]
    assert list(evaluate(tmp_path / "out", *saes).results) == ["sae", str(saes[1])]


def test_an_evaluation_that_fails_leaves_the_old_one(sae, tmp_path, monkeypatch):
    evaluate(tmp_path / "out", sae)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(*args, **options):
        raise ValueError("in the middle")

    monkeypatch.setattr("sae_lens_afa.evals.judge.SAEJudge.result", fail)
    with pytest.raises(ValueError, match="in the middle"):
        evaluate(tmp_path / "out", sae, overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_plot_that_fails_leaves_nothing(sae, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ValueError("cannot draw")

    monkeypatch.setattr("sae_lens_afa.plots.eps_lbo_plot", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        evaluate(tmp_path / "new" / "out", sae)
    assert not any((tmp_path / "new").iterdir())


def test_what_an_sae_does_not_allow_is_said_before_the_model_is_loaded(sae, tmp_path):
    options = {"demo": False, "model": "no such model", "dataset": "none"}
    with pytest.raises(ValueError, match="rescale_by_token_std is for SAEs with"):
        evaluate(tmp_path / "out", sae, rescale_by_token_std=True, **options)
    scaled = StandardSAE(StandardSAEConfig(d_in=192, d_sae=8, normalize_activations="expected_average_only_in"))
    scaled.save_model(tmp_path / "scaled")
    with pytest.raises(ValueError, match="not folded into this SAE's weights"):
        evaluate(tmp_path / "out", tmp_path / "scaled", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no metrics.json"), ("{", "is not JSON"), ('{"version": 7}', "is of version 7")],
)
def test_damaged_files_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        plot_command(tmp_path)


def test_an_unknown_format_is_named(evaluated):
    with pytest.raises(ValueError, match="unknown format gif; choose from png, svg, pdf, html"):
        plot_command(evaluated, formats=["gif"])
