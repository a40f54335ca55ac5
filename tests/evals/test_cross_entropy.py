"""The language model's cross-entropy with an SAE in place."""

import pytest
import torch
from sae_lens import ActivationsStore
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa import TopAFASAE, TopAFASAEConfig, run_afa_evals
from sae_lens_afa._support import expected_messages_off

HOOK, CONTEXT, PROMPTS = "blocks.2.hook_resid_pre", 32, 4


@pytest.fixture
def sae() -> TopAFASAE:
    about = SAEMetadata(hook_name=HOOK, context_size=CONTEXT, prepend_bos=True)
    return TopAFASAE(TopAFASAEConfig(d_in=192, d_sae=512, metadata=about))


def store(model, sae, dataset) -> ActivationsStore:
    with expected_messages_off():
        return ActivationsStore.from_sae(model, sae, dataset, streaming=False, store_batch_size_prompts=PROMPTS)


@torch.no_grad()
def losses(model, tokens, change) -> torch.Tensor:
    with model.hooks(fwd_hooks=[(HOOK, lambda acts, hook: change(acts))]):
        return model(tokens, return_type="loss", loss_per_token=True)


def test_they_are_those_of_the_model_itself(model, sae, dataset):
    result = run_afa_evals(
        sae, store(model, sae, dataset), model, tokens=8 * CONTEXT, cross_entropy_tokens=8 * CONTEXT, progress=False
    )
    tokens = store(model, sae, dataset).get_batch_tokens(8)
    without, with_sae, ablated = (
        float(losses(model, tokens, change).double().mean())
        for change in (lambda acts: acts, sae, lambda acts: torch.zeros_like(acts))
    )
    assert result.ce_loss_without_sae == pytest.approx(without, rel=1e-6)
    assert result.ce_loss_with_sae == pytest.approx(with_sae, rel=1e-6)
    assert result.ce_loss_with_ablation == pytest.approx(ablated, rel=1e-6)
    assert result.ce_loss_score == pytest.approx((ablated - with_sae) / (ablated - without), rel=1e-6)
    assert "recovered (CE score)" in str(result)


def test_they_are_saelens_metrics(model, sae, dataset):
    n = 2 * PROMPTS * CONTEXT
    result = run_afa_evals(sae, store(model, sae, dataset), model, tokens=n, cross_entropy_tokens=n, progress=False)
    config = EvalConfig(n_eval_reconstruction_batches=2, compute_ce_loss=True)
    theirs = run_evals(
        sae, store(model, sae, dataset), model, ActivationScaler(), config, exclude_special_tokens=False
    )[0]["model_performance_preservation"]
    for name in ("ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_score"):
        assert getattr(result, name) == pytest.approx(theirs[name], rel=1e-5), name


def test_special_tokens_that_it_was_not_trained_on_keep_their_activations(model, sae, dataset):
    sae.cfg.metadata.exclude_special_tokens = True
    n = PROMPTS * CONTEXT
    result = run_afa_evals(sae, store(model, sae, dataset), model, tokens=n, cross_entropy_tokens=n, progress=False)
    tokens = store(model, sae, dataset).get_batch_tokens(PROMPTS)
    special = (tokens == model.tokenizer.bos_token_id)[..., None]
    expected = losses(model, tokens, lambda acts: torch.where(special, acts, sae(acts))).double().mean()
    assert result.ce_loss_with_sae == pytest.approx(float(expected), rel=1e-6)


def test_on_the_first_tokens_only(model, sae, dataset, monkeypatch):
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **kw: seen.append(kw.get("return_type")) or forward(*args, **kw)
    )
    run_afa_evals(sae, store(model, sae, dataset), model, tokens=3 * PROMPTS * CONTEXT, progress=False)
    assert not any(seen), "no losses unless they are asked for"
    result = run_afa_evals(
        sae, store(model, sae, dataset), model, tokens=3 * PROMPTS * CONTEXT, cross_entropy_tokens=1, progress=False
    )
    assert sum(kind is not None for kind in seen) == 3, "one batch, three passes"
    assert result.n_tokens == 3 * PROMPTS * CONTEXT
    assert result.ce_loss_score is not None


def test_each_of_several_saes_on_the_same_prompts(model, sae, dataset):
    results = run_afa_evals(
        {"a": sae, "b": sae}, store(model, sae, dataset), model, tokens=CONTEXT, cross_entropy_tokens=CONTEXT,
        progress=False,
    )  # fmt: skip
    assert results["a"] == results["b"]


def test_an_sae_on_all_heads(model, dataset):
    hook = "blocks.1.attn.hook_z"
    about = SAEMetadata(hook_name=hook, context_size=CONTEXT, prepend_bos=True)
    sae = TopAFASAE(TopAFASAEConfig(d_in=192, d_sae=512, metadata=about, reshape_activations="hook_z"))
    result = run_afa_evals(
        sae, store(model, sae, dataset), model, tokens=4 * CONTEXT, cross_entropy_tokens=4 * CONTEXT, progress=False
    )
    tokens = store(model, sae, dataset).get_batch_tokens(4)
    with torch.no_grad(), model.hooks(fwd_hooks=[(hook, lambda acts, hook: sae(acts))]):
        expected = model(tokens, return_type="loss", loss_per_token=True).double().mean()
    assert result.ce_loss_with_sae == pytest.approx(float(expected), rel=1e-6)
    assert sae.hook_z_reshaping_mode, "the SAE is as it was"
