"""Codes edited in place: outputs are ordinary tensors, and gradients after an edit are right or refused by torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from small_saes import D_IN, D_SAE, TRAINING
from torch import Tensor

from sae_lens_afa.saes._matching import feature_choice, mutual_choice
from sae_lens_afa.selection import above_threshold, norm_matching_topk

SAELENS = ("standard", "topk", "batchtopk", "jumprelu")
SETTINGS: dict[str, dict[str, Any]] = {
    "top_afa": {"normalize_activations": "none"},
    "afa_threshold": {"normalize_activations": "none"},
    "mutual_choice": {"k": 6, "rescale_acts_by_decoder_norm": False},
    "feature_choice": {"k": 6, "rescale_acts_by_decoder_norm": False},
    "topk": {"k": 6},
    "batchtopk": {"k": 6},
}
# torch's own words for "gradient refused"
REFUSED = "modified by an inplace operation"


def build(architecture: str, **overrides: Any) -> Any:
    sae_class, config_class = get_sae_training_class(architecture)
    sae = sae_class(config_class(**{"d_in": D_IN, "d_sae": D_SAE, **SETTINGS.get(architecture, {}), **overrides}))
    sae.b_dec.data.normal_(std=0.1)
    return sae


def step(sae: Any, x: Tensor) -> TrainStepOutput:
    coefficients = dict.fromkeys(sae.get_coefficients(), 1.0)
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=1, is_logging_step=False
        )
    )


def outputs(sae: Any, x: Tensor) -> list[Tensor]:
    out = step(sae, x)
    return [sae.encode(x), *sae.encode_with_hidden_pre(x), out.feature_acts, out.hidden_pre, out.sae_out]


def as_float64_autograd(sae: SAE, x: Tensor, active: Tensor, edit_pre: Callable[[Tensor], Tensor]) -> Tensor:
    """Feature activations as they read, with the selection given."""
    if sae.cfg.architecture() == "afa_pursuit":  # whose pre-activations only say which features join
        tokens = zip((x.double() - sae.b_dec.double()).flatten(0, -2), active.flatten(0, -2), strict=True)
        fits = [torch.linalg.pinv(sae.W_dec.double()[chosen].T) @ token for token, chosen in tokens]
        return torch.zeros(active.shape, dtype=torch.float64).masked_scatter(active, torch.cat(fits))
    bias = sae.b_enc.double() if hasattr(sae, "b_enc") else 0
    hidden_pre = edit_pre((x.double() - sae.b_dec.double()) @ sae.W_enc.double() + bias)
    return torch.where(active, hidden_pre, 0)


def gradients(sae: SAE, loss: Tensor) -> dict[str, Tensor]:
    sae.zero_grad()
    loss.backward()
    return {name: p.grad.double() for name, p in sae.named_parameters() if p.grad is not None}


def assert_gradients_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        # float32 sums in another order
        assert (found[name] - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


def zeroed(t: Tensor) -> Tensor:
    """Without the first feature, as one writes it without an edit in place."""
    return torch.cat([torch.zeros_like(t[..., :1]), t[..., 1:]], dim=-1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("architecture", [*TRAINING, *SAELENS])
def test_every_output_can_be_edited_in_place(architecture, dtype):
    sae = build(architecture, dtype=dtype)
    for leading, mode, grad in product([(7,), (2, 3), (2, 1, 3)], [True, False], [True, False]):
        x = torch.randn(*leading, D_IN).to(sae.dtype)
        with torch.set_grad_enabled(grad):
            for tensor in outputs(sae.train(mode), x):
                if architecture in TRAINING:
                    assert not tensor._is_view()
                tensor[..., 0] = 0.0
                assert (tensor[..., 0] == 0).all()


@pytest.mark.parametrize("architecture", ["top_afa", "afa_threshold", "afa_pursuit", "standard", "topk", "jumprelu"])
def test_codes_of_inference_classes_can_be_edited_in_place(architecture):
    sae_class, config_class = get_sae_class(architecture)
    settings = {name: value for name, value in SETTINGS.get(architecture, {}).items() if name == "k"}
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **settings))
    for x in (torch.randn(4, D_IN), torch.randn(2, 3, D_IN)):
        acts = sae.encode(x)
        acts[..., 0] = 0.0
        assert (acts[..., 0] == 0).all()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("architecture", ["top_afa", "afa_threshold", "afa_pursuit"])
def test_large_codes_can_be_edited_in_place(architecture, backend, monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
    sae = build(architecture, d_sae=1024)  # 5 MB of codes, which are put in memory of their own
    x = torch.randn(2, 600, D_IN)
    expected = [t.detach().clone() for t in outputs(sae, x)]
    for tensor, before in zip(outputs(sae, x), expected, strict=True):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        tensor[..., 0] = 0.0
        torch.testing.assert_close(tensor.detach(), zeroed(before))


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_selections_can_be_edited_in_place(leading):
    acts = torch.randn(*leading, D_SAE, requires_grad=True)
    norms, matches = torch.ones(leading), torch.full((D_SAE,), 1)
    for select in (
        lambda: norm_matching_topk(acts, norms),
        lambda: norm_matching_topk(acts, norms, backend="torch"),
        lambda: above_threshold(acts, norms),
        lambda: mutual_choice(acts, 3)[0],
        lambda: feature_choice(acts, matches)[0],
    ):
        out = select()
        out[..., 0] = 0.0
        with pytest.raises(RuntimeError, match=REFUSED):
            out.sum().backward()


@pytest.mark.parametrize("architecture", TRAINING)
def test_a_layout_that_is_not_contiguous_is_kept_right(architecture):
    sae = build(architecture, dtype="float64")
    x = torch.randn(3, 5, D_IN, dtype=torch.float64)
    for other in (x.transpose(0, 1), x.transpose(0, 2).contiguous().transpose(0, 2), x[:, ::2]):
        for found, expected in zip(outputs(sae, other), outputs(sae, other.contiguous()), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("architecture", TRAINING)
def test_the_gradient_after_an_edit_of_the_code_is_refused(architecture):
    sae, x = build(architecture), torch.randn(6, D_IN)
    acts = sae.encode(x)
    acts[:, 0] = 0.0
    with pytest.raises(RuntimeError, match=REFUSED):
        acts.sum().backward()
    out = step(sae, x)
    out.feature_acts[:, 0] = 0.0
    with pytest.raises(RuntimeError, match=REFUSED):
        out.loss.backward()


@pytest.mark.parametrize("leading", [(6,), (2, 3)])
@pytest.mark.parametrize("architecture", TRAINING)
def test_a_hook_that_edits_the_code_has_the_right_gradient(architecture, leading):
    sae, x, weight = build(architecture), torch.randn(*leading, D_IN), torch.randn(*leading, D_SAE)
    active = (sae.encode(x) > 0).detach()
    expected = gradients(sae, (zeroed(as_float64_autograd(sae, x, active, lambda pre: pre)) * weight).sum())

    def ablate(acts: Tensor, hook: Any) -> Tensor:
        acts[..., 0] = 0.0
        return acts

    sae.add_hook("hook_sae_acts_post", ablate)
    assert_gradients_close(gradients(sae, (sae.encode(x) * weight).sum()), expected)
    assert_gradients_close(gradients(sae, (step(sae, x).feature_acts * weight).sum()), expected)


@pytest.mark.parametrize("leading", [(6,), (2, 3)])
@pytest.mark.parametrize("architecture", TRAINING)
def test_a_hook_that_edits_the_pre_activations_has_the_right_gradient(architecture, leading):
    sae, x, weight = build(architecture), torch.randn(*leading, D_IN), torch.randn(*leading, D_SAE)

    def edit(pre: Tensor, hook: Any) -> Tensor:
        pre[..., 0] = 0.0
        pre[..., 1] *= 2.0
        return pre

    sae.add_hook("hook_sae_acts_pre", edit)
    factor = torch.ones(D_SAE).index_fill_(0, torch.tensor([0]), 0).index_fill_(0, torch.tensor([1]), 2)
    active = (sae.encode(x) > 0).detach()
    expected = gradients(sae, (as_float64_autograd(sae, x, active, lambda pre: pre * factor) * weight).sum())
    assert_gradients_close(gradients(sae, (sae.encode(x) * weight).sum()), expected)
    assert_gradients_close(gradients(sae, (step(sae, x).feature_acts * weight).sum()), expected)


@pytest.mark.parametrize("name", ["hidden_pre", "sae_out"])
@pytest.mark.parametrize("architecture", TRAINING)
def test_the_gradient_after_an_edit_of_another_output_is_right_or_refused(architecture, name):
    sae, x = build(architecture), torch.randn(6, D_IN)
    twin = copy.deepcopy(sae)  # Feature Choice's features take turns from step to step
    out = step(sae, x)
    weight = torch.randn_like(getattr(out, name))
    expected = gradients(sae, out.loss + (zeroed(getattr(out, name)) * weight).sum())
    out = step(twin, x)
    edited = getattr(out, name)
    edited[:, 0] = 0.0
    loss = out.loss + (edited * weight).sum()
    if name == "sae_out" and architecture not in ("top_afa", "afa_threshold", "afa_pursuit"):  # SAELens' MSE keeps it
        with pytest.raises(RuntimeError, match=REFUSED):
            loss.backward()
    else:
        assert_gradients_close(gradients(twin, loss), expected)
