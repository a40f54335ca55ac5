"""Somebody looks at an SAE in its model, judges it there, and judges it again."""

from __future__ import annotations

import warnings

import pytest
import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

import sae_lens_afa as afa

HOOK = "blocks.2.hook_resid_pre"


@pytest.fixture(params=["top_afa", "afa_threshold", "topk", "mutual_choice"])
def sae(request, tmp_path) -> SAE:
    """As it is loaded; it was trained without special tokens."""
    about = SAEMetadata(hook_name=HOOK, context_size=32, prepend_bos=True, exclude_special_tokens=True)
    sizes = {"d_in": 192, "d_sae": 384, "metadata": about}
    trained = {
        "top_afa": lambda: afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(**sizes)),
        "afa_threshold": lambda: afa.AFAThresholdTrainingSAE(afa.AFAThresholdTrainingSAEConfig(**sizes)),
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=8)),
        "mutual_choice": lambda: afa.MutualChoiceTrainingSAE(afa.MutualChoiceTrainingSAEConfig(**sizes, k=8)),
    }[request.param]()
    trained.save_inference_model(tmp_path)
    return SAE.load_from_disk(tmp_path)


@pytest.fixture
def store(model, sae, dataset):
    def make() -> ActivationsStore:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ActivationsStore.from_sae(model, sae, dataset, streaming=False, store_batch_size_prompts=4)

    return make


def test_look_then_judge(model, sae):
    _, cache = model.run_with_cache("And God said")
    before = afa.evaluate_activations(sae, cache[HOOK])
    _, seen = model.run_with_cache_with_saes("And God said", saes=[sae])
    assert f"{HOOK}.hook_sae_acts_post" in seen
    assert afa.evaluate_activations(sae, cache[HOOK]) == before


def test_judge_while_it_is_attached_and_go_on(model, sae, store):
    alone = afa.run_afa_evals(sae, store(), model, tokens=64, cross_entropy_tokens=64, progress=False)
    ids = model.to_tokens("In the beginning")
    model.add_sae(sae, use_error_term=True)
    try:
        _, before = model.run_with_cache(ids)
        attached = afa.run_afa_evals(sae, store(), model, tokens=64, cross_entropy_tokens=64, progress=False)
        _, after = model.run_with_cache(ids)
    finally:
        model.reset_saes()
    assert attached == alone
    assert attached.n_tokens < 64, "beginnings of text are no tokens that it was trained on"
    assert before.keys() == after.keys()
    assert torch.equal(before[f"{HOOK}.hook_sae_error"], after[f"{HOOK}.hook_sae_error"])


def test_judge_activations_from_a_forward_pass_with_gradients(model, sae):
    with torch.enable_grad():
        embedded = model.embed(model.to_tokens("And God said, Let there be light")).detach().requires_grad_()
        activations = embedded * 3
    result = afa.evaluate_activations(sae, activations)
    assert result == afa.evaluate_activations(sae, activations.detach())
    assert embedded.grad is None
