"""Meaning of decoder rows, beside the model's own computation."""

from __future__ import annotations

import pytest
import torch
from page_helpers import small_topk

from sae_lens_afa.evals.hook_reader import HookReader
from sae_lens_afa.feature_page.directions import nearest, promoted_tokens, to_residual, unembedding, unit_rows
from sae_lens_afa.feature_page.stages import joining_stages


@pytest.mark.parametrize("elements", [1, 2**24])
def test_nearest_are_those_with_the_largest_cosine(elements, monkeypatch):
    monkeypatch.setattr("sae_lens_afa.feature_page.portions.ELEMENTS", elements)
    W_dec = torch.randn(9, 4)
    W_dec[3] = 0
    others, cosine = nearest(unit_rows(W_dec), 3)
    expected = torch.nn.functional.cosine_similarity(W_dec[:, None], W_dec[None], dim=-1).fill_diagonal_(-torch.inf)
    assert torch.allclose(cosine, expected.topk(3).values, atol=1e-6)
    assert torch.allclose(expected.gather(1, others), cosine, atol=1e-6)


# By hook point: the tensor of the model that the hook's value is put through, up to the residual stream.
PATHS = ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z",
         "mlp.hook_post"]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
@torch.no_grad()
def test_the_way_to_the_residual_stream_is_the_model_s(name, model):
    """What a hook's value adds to the stream of its block is the value times the matrix, and the layer's bias."""
    block = model.blocks[1]
    cache = model.run_with_cache(model.to_tokens("In the beginning"))[1]
    value = cache[f"blocks.1.{name}"].flatten(2)
    added, bias = {
        "attn.hook_z": ("blocks.1.hook_attn_out", block.attn.b_O),
        "mlp.hook_post": ("blocks.1.hook_mlp_out", block.mlp.b_out),
    }.get(name, (f"blocks.1.{name}", 0))
    matrix = to_residual(model, f"blocks.1.{name}", None, value.shape[-1])
    assert torch.allclose(value @ matrix + bias, cache[added], atol=1e-3)


@torch.no_grad()
def test_one_head_goes_through_its_own_part(model):
    z = model.run_with_cache(model.to_tokens("And God said"))[1]["blocks.1.attn.hook_z"]
    whole = to_residual(model, "blocks.1.attn.hook_z", None, z.shape[2] * z.shape[3])
    by_head = [to_residual(model, "blocks.1.attn.hook_z", head, z.shape[3]) for head in range(z.shape[2])]
    assert torch.allclose(sum(z[:, :, h] @ by_head[h] for h in range(z.shape[2])), z.flatten(2) @ whole, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["attn.hook_q", "attn.hook_v", "hook_q_input", "ln1.hook_normalized", "attn.hook_pattern"]
)
def test_what_is_not_written_to_the_stream_has_no_logits(name, model):
    assert to_residual(model, f"blocks.1.{name}", None, 192) is None


@torch.no_grad()
def test_promoted_tokens_are_those_of_the_logits(model):
    """The change of the logits when a row is added to the last residual, the norm's divisor held."""
    sae = small_topk(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", d_sae=6)
    hook = HookReader(sae, None, model)
    tokens, logits = promoted_tokens(unit_rows(sae.W_dec), hook, model, 5)
    assert tokens.shape == logits.shape == (6, 10)
    for row, found, values in zip(unit_rows(sae.W_dec), tokens, logits, strict=True):
        at_norm = (row - row.mean()) * model.ln_final.w
        effect = model.unembed(at_norm[None, None])[0, 0] - model.unembed(torch.zeros(1, 1, 192))[0, 0]
        effect -= effect.mean()
        assert torch.allclose(effect[found], values, atol=1e-4)
        assert torch.allclose(values[:5], effect.topk(5).values, atol=1e-4)
        assert torch.allclose(values[5:].flip(0), effect.topk(5, largest=False).values, atol=1e-4)


@torch.no_grad()
def test_norms_that_are_folded_give_the_same_logits(model):
    """TransformerLens' processing moves the final norm's scale and centring into W_U: a direction says the same."""
    import copy

    folded = copy.deepcopy(model)
    folded.load_and_process_state_dict(model.state_dict(), fold_ln=True, center_writing_weights=False,
                                       center_unembed=False, fold_value_biases=False)  # fmt: skip
    assert not hasattr(folded.ln_final, "w")
    rows = unit_rows(torch.randn(4, model.cfg.d_model))
    a, b = (rows @ unembedding(each) for each in (model, folded))
    assert torch.allclose(a, b, atol=1e-4)


def test_a_model_without_an_unembedding_has_no_logits(model):
    class Model:
        cfg = model.cfg

    sae = small_topk(d_sae=6)
    hook = HookReader(sae, None, Model())
    assert promoted_tokens(unit_rows(sae.W_dec), hook, Model(), 5) is None


def test_a_feature_joins_in_the_stage_after_which_it_stays():
    from sae_lens_afa import AFAPursuitSAE, AFAPursuitSAEConfig
    from sae_lens_afa.selection import pursue

    sae = AFAPursuitSAE(AFAPursuitSAEConfig(d_in=32, d_sae=96, threshold_scale=0.7))
    x = 3 * sae.W_dec[:8] + 2 * sae.W_dec[8:16] + sae.W_dec[16:24] + 0.05 * torch.randn(8, 32)
    stages = joining_stages(sae, x)
    code = sae.encode(x)
    assert torch.equal(stages > 0, code > 0)
    assert int(stages.max()) > 1
    rule, z = sae.pursuit_rule(), x - sae.b_dec
    for stage in range(1, int(stages.max()) + 1):
        then = pursue(z, sae.W_dec, z @ sae.W_dec.T, rule._replace(max_stages=stage), sae.typical_norm)
        assert bool((then[(stages > 0) & (stages <= stage)] > 0).all())
        assert bool((then[stages == stage + 1] == 0).all())
