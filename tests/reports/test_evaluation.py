"""Evaluations as folders: what is checked first, what is written, and that nothing is written by halves."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetInfo
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from sae_lens_afa import AFAResult, TopAFASAE, TopAFASAEConfig
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.reports import EvalReport, draw_plots, evaluate_saes, read_report
from sae_lens_afa.reports.folder import read_tokens

HOOK = "blocks.1.hook_resid_pre"
CHAPTERS = load_text().held_out[:5]


def make(config=StandardSAEConfig, seed: int = 0, **metadata):
    torch.manual_seed(seed)
    about = {"hook_name": HOOK, "context_size": 32, "prepend_bos": True, "model_name": "kjv", **metadata}
    sae_class = TopAFASAE if config is TopAFASAEConfig else StandardSAE
    return sae_class(config(d_in=192, d_sae=64, metadata=SAEMetadata(**about)))


@pytest.fixture
def sae():
    return make()


@pytest.fixture(scope="module")
def judged_on(model):
    """The bundled model and some of its text, as objects."""
    text = Dataset.from_dict({"text": CHAPTERS}, info=DatasetInfo(dataset_name="five chapters"))
    return {"model": model, "dataset": text}


@pytest.fixture
def evaluate(judged_on):
    def run(saes, output: Path, **options) -> EvalReport:
        saes = saes if isinstance(saes, dict) else {"sae": saes}
        options = {"tokens": 128, "batch_size_prompts": 2, "progress": False, **judged_on, **options}
        return evaluate_saes(saes, output, **options)

    return run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, judged_on) -> Path:
    """Two SAEs, judged."""
    folder = tmp_path_factory.mktemp("reports") / "out"
    saes = {"a": make(), "b": make(TopAFASAEConfig, seed=1)}
    evaluate_saes(
        saes, folder, tokens=128, batch_size_prompts=2, outlier_norm_multiple=1.5, progress=False, **judged_on
    )
    return folder


def test_metrics_plots_and_what_they_are_drawn_from_are_written(evaluated):
    plots = {f"{name}.{suffix}" for name in ("zf", "eps_lbo", "l0") for suffix in ("png", "html")}
    assert {path.name for path in evaluated.iterdir()} == {"metrics.json", "plot_data.parquet", *plots}
    data = json.loads((evaluated / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert data["version"] == 2
    assert list(data["saes"]) == ["a", "b"]
    assert data["saes"]["b"]["architecture"] == "top_afa"
    assert data["saes"]["a"]["hook_name"] == HOOK
    assert data["saes"]["a"]["metrics"]["n_tokens"] == 128
    assert data["saes"]["a"]["metrics"]["without_outliers_n_tokens"] <= 128
    assert data["settings"]["tokens"] == 128
    assert data["settings"]["model"] == "kjv_gpt2"
    assert data["settings"]["dataset"] == "five chapters"
    assert "endoftext" in (evaluated / "zf.html").read_text()  # contexts, for hovering


def test_the_report_reads_back_and_prints_as_a_table(evaluated):
    report = read_report(evaluated)
    assert all(isinstance(result, AFAResult) for result in report.results.values())
    text = str(report)
    assert text.splitlines()[0].split() == ["a", "b"]
    assert "without tokens of a norm above" in text


def test_a_report_of_the_first_version_is_read(evaluated, tmp_path):
    data = json.loads((evaluated / "metrics.json").read_text())
    data["version"] = 1
    for about in data["saes"].values():
        about["figures"] = about.pop("metrics")
    (tmp_path / "metrics.json").write_text(json.dumps(data))
    old, new = read_report(tmp_path), read_report(evaluated)
    assert (old.results, old.described, old.settings) == (new.results, new.described, new.settings)


def test_plots_are_redrawn_from_the_files(evaluated, tmp_path):
    files = draw_plots(read_report(evaluated), tmp_path / "new", ["svg"])
    assert sorted(path.name for path in files) == ["eps_lbo.svg", "l0.svg", "zf.svg"]
    assert all(path.stat().st_size > 1000 for path in files)


def test_every_token_is_written_on_request(sae, tmp_path, evaluate):
    report = evaluate(sae, tmp_path / "out", per_token=True)
    tokens = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    assert len(tokens) == report.results["sae"].n_tokens == 128
    assert {"sae", "dense_norm", "epsilon_lbo", "context", "position"} <= set(tokens.columns)
    # A new evaluation does not leave the old one's tokens behind.
    evaluate(sae, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "tokens.parquet").exists()


def test_names_in_the_metadata_and_objects_give_the_same(tmp_path, evaluate):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(CHAPTERS))
    named = make(model_name=str(model_folder()), dataset_path=str(text))
    by_metadata = evaluate(named, tmp_path / "metadata", model=None, dataset=None)
    by_name = evaluate(make(), tmp_path / "name", model=str(model_folder()), dataset=str(text))
    assert by_metadata.results == by_name.results == evaluate(make(), tmp_path / "objects").results
    assert by_metadata.settings["dataset"] == str(text)


def test_positions_are_chosen(sae, tmp_path, evaluate):
    report = evaluate(sae, tmp_path / "out", tokens=4, positions=[-1])
    assert report.results["sae"].n_tokens == 4
    assert set(read_tokens(report.folder)["position"]) == {31}


def test_loss_against_l0_is_drawn_of_saes_that_compare(sae, tmp_path, evaluate):
    elsewhere, beside = make(hook_name="blocks.2.hook_resid_pre"), make(seed=1)
    assert (evaluate({"sae": sae, "beside": beside}, tmp_path / "out").folder / "l0.png").exists()
    # The picture of an evaluation that is replaced goes with it.
    replaced = evaluate({"sae": sae, "elsewhere": elsewhere}, tmp_path / "out", overwrite=True)
    assert not (replaced.folder / "l0.png").exists()


def test_jsonl_text_and_another_hook(sae, tmp_path, evaluate):
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": chapter}) for chapter in CHAPTERS))
    before = sae.cfg.metadata.to_dict()
    report = evaluate(sae, tmp_path / "out", hook="blocks.2.hook_resid_pre", dataset=str(text))
    assert report.described["sae"]["hook_name"] == "blocks.2.hook_resid_pre"
    assert report.results != evaluate(sae, tmp_path / "own").results
    assert sae.cfg.metadata.to_dict() == before


# ---- refused before any work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "^tokens must be at least 1, got 0"),
        ({"context_size": 0}, "^context_size must be at least 1"),
        ({"cross_entropy_tokens": -1}, "^cross_entropy_tokens must not be negative"),
        ({"outlier_norm_multiple": -1.0}, "^outlier_norm_multiple must be > 0"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here: "),
        ({"model": "gpt2x"}, "^model 'gpt2x' cannot be loaded.*gpt2"),
        ({"dataset": None}, "does not say its dataset_path: give dataset"),
        ({"hook": "blocks.9.hook_resid_pre"}, "no hook 'blocks.9.hook_resid_pre'; did you mean"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(sae, tmp_path, evaluate, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        evaluate(sae, tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_nothing_to_judge_is_refused(tmp_path, evaluate):
    with pytest.raises(ValueError, match="saes is empty"):
        evaluate({}, tmp_path / "out")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hook_name": None}, r"sae does not say which hook it codes: give hook \(blocks"),
        ({"context_size": None}, "sae does not say its context size: give context_size"),
        ({"model_name": None}, "sae does not say its model_name: give model"),
        ({"model_name": "kjv_gpt2"}, r"sae was trained on the bundled model: give model and dataset .*--demo"),
    ],
)
def test_what_an_sae_does_not_say_is_asked_for(tmp_path, evaluate, metadata, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make(**metadata), tmp_path / "out", model=None)


def test_an_output_that_cannot_be_written_is_found_out_first(sae, tmp_path, evaluate):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file is not a writable folder"):
        evaluate(sae, tmp_path / "file" / "out", model="no such model")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        evaluate(sae, tmp_path / "out", model="no such model")


def test_saes_that_disagree_about_the_context_are_asked_about(sae, tmp_path, evaluate):
    saes = {"sae": sae, "other": make(context_size=64)}
    with pytest.raises(ValueError, match="different context_size"):
        evaluate(saes, tmp_path / "out")
    assert evaluate(saes, tmp_path / "out", context_size=16).settings["context_size"] == 16


def test_an_evaluation_that_fails_leaves_the_old_one(sae, tmp_path, evaluate):
    evaluate(sae, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with torch.no_grad():
        sae.b_dec.fill_(torch.nan)  # every token becomes a NaN: found out when the result is computed
    with pytest.raises(ValueError, match="no tokens to judge"):
        evaluate(sae, tmp_path / "out", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_plot_that_fails_leaves_nothing(sae, tmp_path, evaluate, monkeypatch):
    def fail(*args, **options):
        raise ValueError("cannot draw")

    monkeypatch.setattr("sae_lens_afa.plots.eps_lbo_plot", fail)
    with pytest.raises(ValueError, match="cannot draw"):
        evaluate(sae, tmp_path / "new" / "out")
    assert not any((tmp_path / "new").iterdir())


def test_what_an_sae_does_not_allow_is_said_before_the_model_is_loaded(sae, tmp_path, evaluate):
    names = {"model": "no such model", "dataset": "none"}
    with pytest.raises(ValueError, match="rescale_by_token_std is for SAEs with"):
        evaluate(sae, tmp_path / "out", rescale_by_token_std=True, **names)
    scaled = StandardSAE(StandardSAEConfig(d_in=192, d_sae=8, normalize_activations="expected_average_only_in"))
    with pytest.raises(ValueError, match="not folded into this SAE's weights"):
        evaluate(scaled, tmp_path / "out", **names)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no metrics.json"), ("{", "is not JSON"), ('{"version": 7}', "is of version 7")],
)
def test_damaged_files_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        read_report(tmp_path)


def test_an_unknown_format_is_named(evaluated, tmp_path):
    with pytest.raises(ValueError, match="unknown format gif; choose from png, svg, pdf, html"):
        draw_plots(read_report(evaluated), tmp_path, ["gif"])
