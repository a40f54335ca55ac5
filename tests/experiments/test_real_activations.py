"""The comparison on activations of a file, and on the bundled model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from sae_lens_afa.cli import app
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.experiments import Arm, activations_sweep, run_sweep
from sae_lens_afa.experiments.activation_file import read_matrix, shuffled_batches
from sae_lens_afa.experiments.held_out import held_out
from sae_lens_afa.experiments.measures import Centred, standardised
from sae_lens_afa.experiments.model_sweep import loaded
from sae_lens_afa.experiments.text_source import TextSource
from sae_lens_afa.loading.text import text_dataset


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "train.safetensors", tmp_path / "test.safetensors"
    for path, tokens in zip(paths, (300, 100), strict=True):
        save_file({"activations": 2 + torch.randn(tokens, 12)}, path)
    return paths


def test_a_file_is_compared_and_the_report_says_how(files, tmp_path):
    sweep = activations_sweep(*files, preset="tiny")
    assert sweep.latents == 48
    assert run_sweep(sweep, tmp_path / "out", progress=False, max_groups=1) is None
    result = run_sweep(activations_sweep(*files, preset="tiny"), tmp_path / "out", progress=False)
    whole = run_sweep(sweep, tmp_path / "whole", progress=False)
    assert result.rows == whole.rows
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert set(table["label"]) == {"topk", "mutual_choice"}
    assert len(table) == 4
    assert set(table["status"]) == {"ok"}
    text = (tmp_path / "out" / "report.md").read_text()
    for part in ("300 tokens of width 12", "100 to judge on", "48 latents", "L0 <= 3", "l0_explained_variance_raw.png"):
        assert part in text


def test_a_file_that_has_changed_is_another_sweep(files, tmp_path):
    run_sweep(activations_sweep(*files, preset="tiny"), tmp_path / "out", progress=False, max_groups=1)
    save_file({"activations": torch.randn(300, 12)}, files[0])
    with pytest.raises(ValueError, match=r"train\.sha256 is .* there and .* here"):
        run_sweep(activations_sweep(*files, preset="tiny"), tmp_path / "out", progress=False)


def test_the_bundled_model_gives_cross_entropy_too(tmp_path):
    result = run_sweep(activations_sweep(preset="tiny"), tmp_path / "out", progress=False)
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert len(table) == 4
    losses = ["ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_score"]
    assert table[["explained_variance", *losses]].notna().all().all()
    assert {file.name for file in result.files} >= {"l0_explained_variance.png", "l0_ce_loss_with_sae.png"}


def test_batches_are_epochs_in_another_order_each():
    activations = torch.arange(10.0)[:, None]
    stream = shuffled_batches(activations, 4, 0)
    epochs = [torch.cat([next(stream), next(stream)]).flatten().tolist() for _ in range(20)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)  # none twice; the two that are left over wait
    assert len({tuple(epoch) for epoch in epochs}) > 10
    assert set().union(*epochs) == set(range(10))
    again = shuffled_batches(activations, 4, 0)
    torch.rand(3)
    assert next(again).flatten().tolist() == epochs[0][:4]


def test_a_file_is_read_in_float32_and_standardised(files):
    save_file({"x": torch.ones(4, 12, dtype=torch.bfloat16)}, files[0])
    assert read_matrix(files[0], "activations").dtype == torch.float32
    sweep = activations_sweep(*files[::-1], preset="tiny")
    torch.testing.assert_close(sweep.data.train, standardised(read_matrix(files[1], "test")))


def test_raw_activations_stay_as_they_are(files, tmp_path):
    sweep = activations_sweep(*files, preset="tiny", raw=True)
    assert torch.equal(sweep.data.test, read_matrix(files[1], "test"))
    run_sweep(sweep, tmp_path / "out", progress=False)
    assert "as the files have them" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match="raw is true there and false here"):
        run_sweep(activations_sweep(*files, preset="tiny"), tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="raw is for the activations of a file"):
        activations_sweep(preset="tiny", raw=True)


def test_arms_are_compared_in_the_space_of_the_file(files, tmp_path):
    arms = [Arm("standard", "l1_coefficient", (0.1,), {"normalize_activations": "layer_norm"})]
    (row,) = run_sweep(activations_sweep(*files, preset="tiny", raw=True, arms=arms, seeds=[0]), tmp_path / "out").rows
    test = read_matrix(files[1], "test")
    # mse is of the file's numbers, and so is the explained variance that goes with it.
    expected = 1 - row["mse"] * test.numel() / (test - test.mean(0)).square().sum().item()
    assert row["explained_variance_raw"] == pytest.approx(expected, rel=1e-4)
    assert row["explained_variance"] != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(300, 13)}, "13 wide and test activations 12"),
        ({"a": torch.full((300, 12), torch.nan)}, "300 tokens with NaN or infinity, the first at 0"),
        ({"a": torch.ones(12)}, r"^activations .*shape \[12\], expected \[tokens, d_in\]"),
        ({"a": torch.ones(0, 12)}, r"^activations .*expected \[tokens, d_in\]"),
        ({"a": torch.ones(20, 12)}, "20 tokens are fewer than a batch of 64"),
        ({"a": torch.ones(2, 12), "b": torch.ones(2, 12)}, "^activations .* must hold one tensor"),
    ],
)
def test_a_file_that_will_not_do_is_refused_before_anything_is_written(files, tmp_path, content, message):
    save_file(content, files[0])
    with pytest.raises(ValueError, match=message):
        run_sweep(activations_sweep(*files, preset="tiny"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_refused_before_anything_is_written(files, tmp_path):
    def run(*given, **options):
        run_sweep(activations_sweep(*given, **{"preset": "tiny", **options}), tmp_path / "out")

    with pytest.raises(FileNotFoundError, match=r"^test .*none\.safetensors is not a file"):
        run(files[0], tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="are the same file"):
        run(files[0], files[0])
    with pytest.raises(ValueError, match="give activations and test"):
        run(files[0])
    with pytest.raises(ValueError, match="unknown preset 'x'; there are quick, full, tiny"):
        run(preset="x")
    with pytest.raises(ValueError, match="unknown architecture 'x'"):
        run(*files, arms=[Arm("x", "k", (1,))])
    assert not (tmp_path / "out").exists()


def test_the_command(files, tmp_path):
    args = ["sweep", "activations", "--activations", str(files[0]), "--test", str(files[1]), "--preset", "tiny"]
    args += ["--output", str(tmp_path / "out"), "--seed", "0", "--d-sae", "24", "--grid", "gated:l1_coefficient=0.1,1"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "2 runs" in result.output
    assert "| activations | gated |" in result.output


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lens_afa.experiments.text_source.HELD_OUT_DOCUMENTS", 4)
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(chapter.replace("\n", " ") for chapter in load_text().train[:12]))
    yield file
    loaded.cache_clear()


@pytest.mark.parametrize(
    ("model_class", "hook"),
    [("HookedTransformer", "blocks.2.hook_resid_post"), ("AutoModelForCausalLM", "transformer.h.2")],
)
def test_any_model_gives_cross_entropy_too(model_class, hook, text, tmp_path):
    args = ["sweep", "activations", "--model", str(model_folder()), "--model-class-name", model_class]
    args += ["--dataset", str(text), "--hook", hook, "--preset", "tiny", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert set(table["stream"]) == {hook}
    assert (table["ce_loss_with_ablation"] > table["ce_loss_with_sae"]).all()
    assert (table["ce_loss_with_sae"] > table["ce_loss_without_sae"]).all()
    said = (tmp_path / "out" / "report.md").read_text()
    for part in ("d_in 192, d_sae 768", "Special tokens are left out", "l0_ce_loss_with_sae.png"):
        assert part in said


def test_both_ways_to_a_model_give_the_same_activations(text):
    def of(model_class, hook):
        source = TextSource(str(model_folder()), str(text), 32, model_class, centred=True)
        model = source.load_model("cpu")
        found = held_out(source, model, source.datasets(), [hook], 512, "cpu")
        assert source.left_out(model)
        kept = ~torch.isin(found.prompts, torch.tensor(source.left_out(model)))
        assert len(found.activations[hook]) == kept.sum() < kept.numel()
        return found.standardised(hook)

    ours = of("HookedTransformer", "blocks.2.hook_resid_post")
    # transformers computes in the folder's half precision, up to 2^-9 a rounding, of which a layer has several; another
    # mean, or tokens in another order, would differ by about 1.
    theirs = of("AutoModelForCausalLM", "transformer.h.2")
    assert (theirs - ours).norm() < 0.02 * ours.norm()


def test_the_mean_token_is_taken_off_and_put_back():
    mean, acts = torch.randn(12), torch.randn(5, 12, dtype=torch.float64)
    space = Centred(mean=mean)
    torch.testing.assert_close(space.scale(acts), acts - mean)
    torch.testing.assert_close(space.unscale(space.scale(acts)), acts)
    torch.testing.assert_close(space.standardised(acts), standardised(acts - mean))
    assert Centred().scale(acts) is acts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt2"}, "dataset and hook missing: a sweep"),
        ({"hook": "blocks.1.hook_resid_pre"}, "model and dataset missing"),
        ({"model_class_name": "AutoModelForCausalLM"}, "model and dataset and hook missing"),
        ({"activations": "a.safetensors", "test": "b.safetensors", "hook": "x"}, "hook is for the activations of a mo"),
    ],
)
def test_half_of_a_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        activations_sweep(preset="tiny", **options)


def test_a_text_that_is_all_held_out_is_refused(text):
    source = TextSource(str(model_folder()), str(text), 32, centred=True)
    model, (_, test) = source.load_model("cpu"), source.datasets()
    nothing = text_dataset(["too short"])
    with pytest.raises(ValueError, match=r"no prompt of 32 tokens to train on beyond the documents that are held out"):
        held_out(source, model, (nothing, test), ["blocks.2.hook_resid_post"], 512, "cpu")
