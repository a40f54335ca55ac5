"""The bundled model and text, the demo's configuration, and what its metrics are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sae_lens import ActivationsStore
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_afa import TopAFATrainingSAE
from sae_lens_afa.demo import load_text, model_folder, run_demo
from sae_lens_afa.demo.chapters import held_out_dataset
from sae_lens_afa.demo.run import HOOK_NAME, demo_config
from sae_lens_afa.functional import feature_norm
from sae_lens_afa.loading.gpt2_folder import load_gpt2_folder
from sae_lens_afa.reports import evaluate_saes


def test_the_text_is_split_by_chapters_without_overlap():
    text = load_text()
    assert (len(text.train), len(text.held_out)) == (1130, 59)
    assert not set(text.train) & set(text.held_out)
    assert text.train[0].startswith("In the beginning God created the heaven and the earth.\n")


def test_the_hooked_model_is_the_hugging_face_model(model):
    hf_model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(model_folder())(load_text().held_out[5], return_tensors="pt").input_ids
    with torch.no_grad():
        # Two implementations in float32, four layers: logits of size 10 agree to 1e-4.
        torch.testing.assert_close(model(tokens[:, :128]), hf_model(tokens[:, :128]).logits, atol=1e-4, rtol=1e-4)


def held_out_windows(model) -> torch.Tensor:
    """The held-out chapters as SAELens' store gives them: windows of 128 tokens that begin with BOS."""
    tokens = torch.cat([model.to_tokens(chapter, truncate=False)[0] for chapter in load_text().held_out])
    body = tokens[: len(tokens) // 127 * 127].view(-1, 127)
    return torch.cat([body.new_full((len(body), 1), model.tokenizer.bos_token_id), body], dim=1)


def test_the_model_is_a_language_model_and_not_noise(model):
    report = json.loads((model_folder() / "training.json").read_text())
    windows = held_out_windows(model)
    assert windows[:, 1:].numel() == report["held_out_tokens"] // 127 * 127
    with torch.no_grad():
        loss = model(windows[::8], return_type="loss").item()
    # Every eighth window: their losses have a standard deviation of 0.5, the mean of the 51 windows one of 0.07.
    assert loss == pytest.approx(report["held_out_cross_entropy"], abs=0.15)
    assert report["held_out_cross_entropy"] < 0.55 * report["held_out_unigram_cross_entropy"]


def test_the_model_knows_its_book(model):
    prompt = model.to_tokens("In the beginning God created the heaven and the")
    assert model.to_string(model(prompt)[0, -1].argmax()) == " earth"


def test_the_tokenizer_keeps_text(model):
    verse = load_text().held_out[0][:400]
    assert model.to_string(model.to_tokens(verse)[0, 1:]) == verse


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_gpt2_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="type 'llama'; only 'gpt2'"):
        load_gpt2_folder(tmp_path)


def test_the_shortest_run_has_a_growth_that_ends():
    cfg = demo_config(Path("out"), 2048, "cpu", "afa_pursuit")
    assert cfg.sae.growth_steps == 0


def untrained(scale: float = 1.0) -> TopAFATrainingSAE:
    """An SAE as the demo makes it, untrained."""
    sae = TopAFATrainingSAE(demo_config(Path("out"), 2048, "cpu").sae)
    sae.cfg.metadata.hook_name, sae.cfg.metadata.context_size, sae.cfg.metadata.prepend_bos = HOOK_NAME, 128, True
    sae.b_dec.data.normal_(std=0.5)
    sae.W_enc.data.mul_(scale)
    return sae


def test_the_evaluation_measures_what_it_says(tmp_path, model):
    sae, other = untrained(), untrained(0.5)
    report = evaluate_saes(
        {"sae": sae, "other": other}, tmp_path / "out", model=model, dataset=held_out_dataset(), tokens=1024,
        cross_entropy_tokens=1024, batch_size_prompts=8, progress=False,
    )  # fmt: skip
    result, beside = report.results["sae"], report.results["other"]

    store = ActivationsStore.from_sae(model, sae, held_out_dataset(), streaming=False)
    windows = torch.cat([store.get_batch_tokens(1) for _ in range(8)])
    with torch.no_grad():
        z = model.run_with_cache(windows, names_filter=[HOOK_NAME], stop_at_layer=3)[1][HOOK_NAME].flatten(0, 1)
        acts = sae.encode(z)
        x = sae.run_time_activation_norm_fn_in(z)
        error = (acts @ sae.W_dec + sae.b_dec - x).double().square().sum()
        ratio = feature_norm(acts, sae.W_dec, sae.b_dec) / x.norm(dim=-1)
        variance = (x - x.mean(0)).double().square().sum()
        loss = model(windows, return_type="loss").item()
    assert beside.l0_mean != result.l0_mean
    assert beside.l0_mean == pytest.approx((other.encode(z) > 0).sum(-1).float().mean().item(), rel=1e-3)
    assert result.n_tokens == len(z) == 1024
    assert result.n_nonfinite == 0
    assert result.l0_mean == pytest.approx((acts > 0).sum(-1).float().mean().item(), rel=1e-3)
    assert result.ce_loss_without_sae == pytest.approx(loss, rel=1e-4)
    assert result.ce_loss_without_sae < result.ce_loss_with_sae
    assert result.explained_variance == pytest.approx((1 - error / variance).item(), rel=1e-3)
    assert result.norm_ratio_median == pytest.approx(ratio.median().item(), rel=1e-3)


def test_run_demo_refuses_before_it_loads_anything(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="not a folder"):
        run_demo(tmp_path / "file")
    (tmp_path / "out-afa_pursuit").mkdir()
    with pytest.raises(FileExistsError, match="out-afa_pursuit exists; pass "):
        run_demo(tmp_path / "out")
    (tmp_path / "judged-eval").mkdir()
    with pytest.raises(FileExistsError, match="judged-eval exists; pass "):
        run_demo(tmp_path / "judged")


def test_a_checkpoint_of_the_second_sae_needs_the_first(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "cfg.json").write_text(json.dumps({"architecture": "afa_pursuit"}))
    with pytest.raises(FileNotFoundError, match=r"the demo's top_afa SAE, .* is not in .*out: give output as before"):
        run_demo(tmp_path / "out", resume_from_checkpoint=tmp_path / "checkpoint")


def test_a_run_that_cannot_be_evaluated_or_saved_is_refused_before_it_trains(tmp_path):
    with pytest.raises(ValueError, match="eval_tokens must be at least 1, got 0"):
        run_demo(tmp_path / "out", eval_tokens=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is not a writable folder"):
        run_demo(tmp_path / "file" / "out")
