"""The paper's comparison on the bundled model, in a form of seconds; what it has to be on GPT-2 small."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib.resources import files

import pandas as pd
import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from sae_lens_afa.cli import app
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.experiments import Arm, paper_sweep, run_sweep
from sae_lens_afa.experiments.arms import Run
from sae_lens_afa.experiments.held_out import held_out, hook_widths
from sae_lens_afa.experiments.measures import Centred, inference_sae, standardised
from sae_lens_afa.experiments.model_sweep import loaded
from sae_lens_afa.experiments.paper import PaperSweep, published_runs
from sae_lens_afa.experiments.side_by_side import Training, build
from sae_lens_afa.experiments.text_source import TextSource, training_batches

HOOK = "blocks.1.hook_resid_pre"
TRAINING = Training(steps=4, batch_size=64, lr=1e-3, dead_feature_window=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return run_sweep(paper_sweep("tiny"), folder, progress=False)


def test_there_is_a_row_for_every_run_with_its_cross_entropy(finished):
    table = pd.read_csv(finished.folder / "runs.csv")
    assert sorted(zip(table["label"], table["seed"], strict=True)) == [
        (label, seed) for label in ("batchtopk", "top_afa", "topk") for seed in (0, 1)
    ]
    assert set(table["status"]) == {"ok"}
    assert set(table["stream"]) == {"layer 1"}
    assert (table["ce_loss_with_ablation"] > table["ce_loss_with_sae"]).all()
    assert (table["ce_loss_with_sae"] > table["ce_loss_without_sae"]).all()
    assert table["ce_loss_without_sae"].nunique() == 1
    for metric in ("mse", "explained_variance", "dead_latents", "norm_ratio_median", "epsilon_lbo_median", "mdl_bits"):
        assert table[metric].notna().all(), metric
    # Standardised tokens reach these SAEs as they are.
    assert table["explained_variance"].tolist() == pytest.approx(table["explained_variance_raw"].tolist(), abs=1e-6)


def test_the_report_has_the_published_runs_beside_ours(finished):
    text = (finished.folder / "report.md").read_text()
    assert "| layer 7 | top_afa | afa_coefficient=0.015625 | 1930.1 | 1.95e-04 |" in text
    assert "| layer 6 | topk | k=1024 |" in text
    assert "lowest mean MSE with L0 <= 48" in text
    page = (finished.folder / "l0_mse.html").read_text()
    assert "published: GPT-2 small, layer 8" in page.replace("\\u002d", "-")


def test_published_runs_are_the_published_file():
    published = json.loads((files("sae_lens_afa.experiments") / "paper_l0_l2.json").read_text())
    runs = published_runs()
    assert len(runs) == sum(len(layer["rows"]) for layer in published["layers"].values()) == 69
    best = {}
    for run in runs:
        key = (run["stream"], run["label"])
        best[key] = min(best.get(key, run), run, key=lambda r: r["mse"])
    assert {k: round(v["mse"] * 1e4, 3) for k, v in best.items() if k[1] == "top_afa"} == {
        ("layer 6", "top_afa"): 1.641, ("layer 7", "top_afa"): 1.953, ("layer 8", "top_afa"): 1.659,
    }  # fmt: skip


def test_a_stopped_sweep_goes_on_and_ends_the_same(finished, tmp_path):
    class Undrawn(PaperSweep):
        plots = ()

    tiny = paper_sweep("tiny")
    sweep = Undrawn(**{field.name: getattr(tiny, field.name) for field in fields(tiny)})
    assert len(sweep.groups()) == 4  # three SAEs a seed, at most two side by side
    assert run_sweep(sweep, tmp_path, progress=False, max_groups=3) is None
    assert run_sweep(sweep, tmp_path, progress=False).rows == finished.rows


def test_the_defaults_are_the_papers_exact_settings():
    sweep = paper_sweep()
    settings = sweep.settings()
    assert (sweep.source.model, sweep.source.dataset) == ("gpt2", "Skylion007/openwebtext")
    assert (sweep.source.context_size, sweep.source.centred) == (128, False)
    assert list(settings["hooks"].values()) == [f"blocks.{layer}.hook_resid_pre" for layer in (6, 7, 8)]
    assert (sweep.d_in, sweep.d_sae) == (768, 12_288)
    training = sweep.training
    assert (training.steps, training.batch_size, training.lr, training.adam_beta2) == (20_001, 4096, 3e-4, 0.99)
    assert training.dead_feature_window == 5
    ours = {(layer, run.label, f"{run.hyperparameter}={run.value:g}") for group in sweep.groups()[:3]
            for layer, run in group.members}  # fmt: skip
    assert ours == {(run["stream"], run["label"], run["setting"]) for run in published_runs()}
    assert 49 in sweep.seeds
    assert len(sweep.seeds) == 3
    reference = sweep.arms[0].runs()[0].sae_config(768, 12_288)
    assert (reference.loss_reduction, reference.detach_aux_residual, reference.aux_loss_coefficient) == (
        "mean", False, 1 / 32,
    )  # fmt: skip
    assert {row["label"] for row in sweep.published()} == {f"{n}, published" for n in ("top_afa", "topk", "batchtopk")}


def test_standardising_is_sae_lens_layer_norm(model):
    sae = build(Run("a", "topk", "k", 4), 192, 32, 0, "cpu")
    raw = 3 + 5 * torch.randn(40, 192)
    own = inference_sae(sae, standardise=True)
    assert own.cfg.normalize_activations == "layer_norm"
    x = standardised(raw)
    torch.testing.assert_close(x, own.run_time_activation_norm_fn_in(raw), rtol=0, atol=0)
    outer = own(raw)
    expected = inference_sae(sae)(x) * raw.std(-1, keepdim=True) + raw.mean(-1, keepdim=True)
    torch.testing.assert_close(outer, expected, rtol=1e-5, atol=1e-4)


def test_batches_are_standardised_activations_and_depend_on_the_seed_only(model, dataset):
    def first(seed):
        saes = {"a": build(Run("a", "topk", "k", 4), 192, 32, 0, "cpu")}
        source = TextSource(context_size=32)
        return next(
            training_batches(source, model, dataset, saes, {"a": HOOK}, {HOOK: Centred()}, TRAINING, seed, "cpu")
        )[HOOK]

    batch = first(0)
    assert batch.shape == (64, 192)
    torch.testing.assert_close(batch.mean(-1), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.std(-1), torch.ones(64), atol=1e-3, rtol=0)
    torch.rand(5)
    assert torch.equal(batch, first(0))
    assert not torch.equal(batch, first(1))


def test_held_out_activations_are_the_models(model):
    text = Dataset.from_dict({"text": load_text().held_out[:4]})
    held = held_out(TextSource(context_size=32), model, (text, text), [HOOK], 1000, "cpu")
    assert held.prompts.shape == (32, 32)
    _, cache = model.run_with_cache(held.prompts[:2], names_filter=HOOK)
    torch.testing.assert_close(held.activations[HOOK][:64], cache[HOOK].flatten(0, 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="fewer than test_tokens=1000000"):
        held_out(TextSource(context_size=32), model, (text, text), [HOOK], 1_000_000, "cpu")


def test_hooks_are_checked(model):
    assert hook_widths(model, [HOOK]) == {HOOK: 192}
    with pytest.raises(ValueError, match=r"no hook 'blocks.1.hook_resid_pr'; did you mean blocks.1.hook_resid_pre"):
        hook_widths(model, ["blocks.1.hook_resid_pr"])
    with pytest.raises(ValueError, match="has shape"):
        hook_widths(model, ["blocks.1.attn.hook_z"])


def test_the_first_documents_of_a_data_set_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lens_afa.experiments.text_source.HELD_OUT_DOCUMENTS", 2)
    file = tmp_path / "text.txt"
    file.write_text("one\n\ntwo\n\nthree\n\nfour")
    train, test = TextSource("gpt2", str(file)).datasets()
    assert (list(train["text"]), list(test["text"])) == (["three", "four"], ["one", "two"])
    asked = []

    def hub(name, split, streaming):
        asked.append((name, split, streaming))
        return Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()

    monkeypatch.setattr("sae_lens_afa.experiments.text_source.load_dataset", hub)
    train, _ = TextSource("gpt2", "owner/text").datasets()
    assert asked == [("owner/text", "train", True)]
    assert [row["text"] for row in train] == ["c"]


def test_another_model_and_text_take_the_place_of_gpt2_and_openwebtext(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "x"}')
    sweep = paper_sweep("paper", model=str(model_folder()), dataset=str(file), layers=[2])
    assert (sweep.d_in, sweep.d_sae, sweep.source) == (192, 16 * 192, TextSource(str(model_folder()), str(file), 128))
    assert sweep.source.load_model("cpu").cfg.d_model == 192
    with pytest.raises(ValueError, match="model 'gpt2': the preset 'tiny' has its own model"):
        paper_sweep("tiny", model="gpt2")
    with pytest.raises(FileNotFoundError, match="model /no/where is not a Hugging Face model folder"):
        paper_sweep("paper", model="/no/where")


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_what_cannot_be_downloaded_is_named_in_one_line(kind, monkeypatch):
    def fail(*args, **kwargs):
        raise kind("no network\nat all")

    monkeypatch.setattr("sae_lens_afa.loading.models.load_model", fail)
    monkeypatch.setattr("sae_lens_afa.experiments.text_source.load_dataset", fail)
    source = TextSource("gpt2", "owner/text")
    with pytest.raises(
        kind, match=r"^model 'gpt2' cannot be loaded: no network The bundled model needs no network: .*preset demo\.$"
    ):
        source.load_model("cpu")
    with pytest.raises(kind, match=r"^dataset 'owner/text' cannot be loaded: no network The bundled model"):
        source.datasets()


def test_the_width_is_checked_before_training():
    sweep = paper_sweep("tiny", layers=[1])
    wrong = replace(sweep, d_in=100)
    with pytest.raises(ValueError, match=r"d_in is 100, but activations at blocks.1.hook_resid_pre are 192 wide"):
        wrong.run_group(wrong.groups()[0], lambda steps: None)
    loaded.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'; there are paper, demo, tiny"),
        ({"dataset": "x"}, "dataset 'x': the preset 'tiny' has its own text"),
        ({"saes_per_group": 0}, "saes_per_group must be at least 1"),
        ({"arms": [Arm("topk", "k", (3,), {"normalize_activations": "expected_average_only_in"})]}, "needs an"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_first(options, message):
    with pytest.raises(ValueError, match=message):
        paper_sweep(**{"preset": "tiny", **options})


def test_the_command(tmp_path):
    args = ["sweep", "paper", "--preset", "tiny", "--output", str(tmp_path / "out"), "--layer", "2", "--seed", "0",
            "--grid", "jumprelu:l0_coefficient=0.1"]  # fmt: skip
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "| layer 2 | jumprelu | l0_coefficient=0.1 |" in result.output
