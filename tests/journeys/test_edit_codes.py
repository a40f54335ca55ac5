"""Ablate or steer a feature in a hook of a model with an SAE attached, as one writes it: by an edit in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_training_class
from torch import Tensor

HOOK = "blocks.2.hook_resid_pre"
SETTINGS: dict[str, dict[str, Any]] = {
    "top_afa": {},
    "afa_threshold": {},
    "afa_pursuit": {},
    "mutual_choice": {"k": 16},
    "feature_choice": {"k": 16},
    "topk": {"k": 16},
    "batchtopk": {"k": 16},
    "standard": {},
    "jumprelu": {},
}
OURS = ("top_afa", "afa_threshold", "afa_pursuit", "mutual_choice", "feature_choice")


def attached(architecture: str, **overrides: Any) -> Any:
    sae_class, config_class = get_sae_training_class(architecture)
    cfg = config_class(d_in=192, d_sae=256, **SETTINGS[architecture], **overrides)
    cfg.metadata.hook_name = HOOK
    return sae_class(cfg)


def ablate(acts: Tensor, hook: Any) -> Tensor:
    acts[:, :, 5:40] = 0.0
    return acts


def ablate_copy(acts: Tensor, hook: Any) -> Tensor:
    return ablate(acts.clone(), hook)


def logits(model: Any, sae: Any, point: str, edit: Any) -> Tensor:
    tokens = model.to_tokens("And God said, Let there be light")
    return model.run_with_hooks_with_saes(tokens, saes=[sae], fwd_hooks=[(f"{HOOK}.{point}", edit)])


@pytest.mark.parametrize("point", ["hook_sae_acts_pre", "hook_sae_acts_post"])
@pytest.mark.parametrize("architecture", SETTINGS)
def test_ablating_features_of_an_attached_sae(model, architecture, point):
    sae = attached(architecture)
    for mode in (True, False):
        sae.train(mode)
        changed = logits(model, sae, point, ablate)
        torch.testing.assert_close(changed, logits(model, sae, point, ablate_copy))
        assert not torch.equal(changed, logits(model, sae, point, lambda acts, hook: acts))


@pytest.mark.parametrize("point", ["hook_sae_acts_pre", "hook_sae_acts_post"])
@pytest.mark.parametrize("architecture", OURS)
def test_gradients_of_an_ablation(model, architecture, point):
    sae = attached(architecture)
    found = []
    for edit in (ablate, ablate_copy):
        sae.zero_grad()
        logits(model, sae, point, edit).log_softmax(-1)[0, -1, 7].backward()
        found.append({name: p.grad for name, p in sae.named_parameters()})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, msg=name)
    if architecture != "afa_pursuit":  # whose values are fitted together
        assert (found[0]["W_dec"][5:40] == 0).all()  # what was ablated decides nothing


def test_a_code_is_edited_and_decoded():
    sae = attached("top_afa", normalize_activations="none")
    x = torch.randn(4, 192)
    acts = sae.encode(x)
    before = sae.decode(acts)
    removed = acts[:, 5:6].detach().clone() * sae.W_dec[5]
    acts[:, 5] = 0.0
    torch.testing.assert_close(sae.decode(acts), before - removed, atol=1e-5, rtol=1e-5)
