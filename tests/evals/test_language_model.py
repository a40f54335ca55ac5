"""SAEs judged on the bundled language model and its text."""

from __future__ import annotations

import warnings

import pytest
import torch
from datasets import Dataset
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from sae_lens_afa import AFAResult, TopAFASAE, TopAFASAEConfig, evaluate_activations, run_afa_evals
from sae_lens_afa.demo.model import model_folder
from sae_lens_afa.evals.attached import saes_detached
from sae_lens_afa.evals.prompts import batches_once

CONTEXT = 32


def build(hook_name: str = "blocks.2.hook_resid_pre", *, d_in: int = 192, config=StandardSAEConfig, **metadata) -> SAE:
    torch.manual_seed(1)
    about = SAEMetadata(hook_name=hook_name, context_size=CONTEXT, prepend_bos=True, **metadata)
    options = (
        {"reshape_activations": "hook_z"} if hook_name.endswith("_z") and "hook_head_index" not in metadata else {}
    )
    sae_class = TopAFASAE if config is TopAFASAEConfig else StandardSAE
    sae = sae_class(config(d_in=d_in, d_sae=256, metadata=about, **options))
    sae.b_dec.data.normal_(std=0.1)
    return sae


@pytest.fixture
def store(model, dataset):
    def make(sae: SAE, **options) -> ActivationsStore:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ActivationsStore.from_sae(
                model, sae, dataset, streaming=False, store_batch_size_prompts=4, total_tokens=10, **options
            )

    return make


def quiet(*args, **options):
    return run_afa_evals(*args, progress=False, **options)


def same(a: AFAResult, b: AFAResult, rel: float = 1e-6) -> bool:
    metrics = [{name: value for name, value in r.to_dict().items() if value is not None} for r in (a, b)]
    return metrics[0] == pytest.approx(metrics[1], rel=rel)


def test_metrics_are_those_of_the_activations_themselves(model, store):
    sae = build()
    tokens = store(sae).get_batch_tokens(8)
    activations = model.run_with_cache(tokens, prepend_bos=False)[1]["blocks.2.hook_resid_pre"]
    assert same(quiet(sae, store(sae), model, tokens=8 * CONTEXT), evaluate_activations(sae, activations))


def test_several_saes_share_a_forward_pass_and_keep_their_hooks(model, store, monkeypatch):
    saes = {
        "resid": build(),
        "late": build("blocks.3.hook_resid_pre", config=TopAFASAEConfig),
        "z": build("blocks.1.attn.hook_z"),
        "one head": build("blocks.1.attn.hook_z", d_in=model.cfg.d_head, hook_head_index=2),
        "mlp": build("blocks.0.hook_mlp_out"),
    }
    alone = {name: quiet(sae, store(sae), model, tokens=256) for name, sae in saes.items()}
    calls = []
    run = model.run_with_cache
    monkeypatch.setattr(model, "run_with_cache", lambda *a, **k: calls.append(k.get("stop_at_layer")) or run(*a, **k))
    together = quiet(saes, store(saes["resid"]), model, tokens=256)
    assert list(together) == list(saes)
    assert all(same(together[name], alone[name]) for name in saes)
    # 256 tokens in two batches of 4 prompts, no further than layer 3.
    assert calls == [4, 4]


def test_tokens_are_read_exactly_and_named(model, store):
    sae = build()
    result = quiet(sae, store(sae), model, tokens=150)
    assert result.n_tokens == 150
    ids = store(sae).get_batch_tokens(8).flatten()[:150]
    assert result.tokens.token.tolist() == [model.tokenizer.decode([i]) for i in ids]
    row = result.tokens.iloc[CONTEXT + 3]
    assert (row.prompt, row.position) == (1, 3)
    assert row.context == model.tokenizer.decode(ids[CONTEXT : CONTEXT + 4])
    assert result.tokens.context.iloc[-1].endswith(result.tokens.token.iloc[-1])


def test_only_given_positions_are_judged(model, store):
    sae = build()
    result = quiet(sae, store(sae), model, tokens=12, positions=[-1, 3])
    assert result.n_tokens == 12
    assert sorted(set(result.tokens.position)) == [3, CONTEXT - 1]
    assert result.tokens.prompt.nunique() == 6


def test_positions_are_those_that_the_sae_was_trained_on(model, store):
    sae = build(seqpos_slice=(1, 5))
    result = quiet(sae, store(sae), model, tokens=40)
    assert result.n_tokens == 40
    assert sorted(set(result.tokens.position)) == [1, 2, 3, 4]
    # As JSON gives it back.
    assert same(quiet(build(seqpos_slice=[1, 5]), store(sae), model, tokens=40), result)
    # Not those of another SAE, whose the store is, unless its own metadata does not say.
    everywhere = quiet(build(seqpos_slice=(None,)), store(sae), model, tokens=64)
    assert sorted(set(everywhere.tokens.position)) == list(range(CONTEXT))
    assert same(quiet(build(), store(sae), model, tokens=40), result)
    assert quiet(sae, store(sae), model, tokens=6, positions=[0]).n_tokens == 6
    with pytest.raises(ValueError, match=r"seqpos_slice=\(40, None\), on which the SAE was trained, .* 32 tokens"):
        quiet(build(seqpos_slice=(40, None)), store(sae), model)


def test_special_tokens_are_left_out(model, store):
    sae = build()
    bos = model.tokenizer.bos_token_id
    every = quiet(sae, store(sae), model, tokens=256)
    without = quiet(sae, store(sae), model, tokens=256, exclude_special_tokens=True)
    n_bos = int((every.tokens.token == model.tokenizer.bos_token).sum())
    assert n_bos >= 8
    assert without.n_tokens == 256 - n_bos
    assert model.tokenizer.bos_token not in set(without.tokens.token)
    assert same(without, quiet(sae, store(sae), model, tokens=256, exclude_special_tokens=[bos]))


def test_special_tokens_are_left_out_as_in_training(model, store):
    """Unless the caller says otherwise."""
    bos = model.tokenizer.bos_token_id
    plain = build()
    every = quiet(plain, store(plain), model, tokens=128)
    without = quiet(plain, store(plain), model, tokens=128, exclude_special_tokens=True)
    assert without.n_tokens < every.n_tokens == 128
    for trained_with in (True, [bos]):
        sae = build(exclude_special_tokens=trained_with)
        assert same(quiet(sae, store(sae), model, tokens=128), without)
        assert same(quiet(sae, store(sae), model, tokens=128, exclude_special_tokens=False), every)
    for trained_with in (False, [], None):
        sae = build(exclude_special_tokens=trained_with)
        assert same(quiet(sae, store(sae), model, tokens=128), every)


def test_each_of_several_saes_is_judged_on_its_own_tokens(model, store):
    saes = {
        "all": build(),
        "no special": build(exclude_special_tokens=True),
        "first four": build(seqpos_slice=(0, 4)),
        "one head": build("blocks.1.attn.hook_z", d_in=model.cfg.d_head, hook_head_index=2, seqpos_slice=(5, None)),
    }
    alone = {name: quiet(sae, store(sae), model, tokens=64) for name, sae in saes.items()}
    together = quiet(saes, store(saes["all"]), model, tokens=64)
    assert len({result.n_tokens for result in together.values()}) == 2, "special tokens are not of the 64"
    for name in saes:
        assert same(together[name], alone[name]), name
        assert together[name].tokens.context.tolist() == alone[name].tokens.context.tolist()


def test_outliers_are_reported_beside_everything(model, store):
    sae = build()
    result = quiet(sae, store(sae), model, tokens=256, outlier_norm_multiple=1.2)
    assert 0 < result.without_outliers.n_tokens < result.n_tokens == 256
    assert result.without_outliers.tokens.dense_norm.max() <= result.outlier_norm * (1 + 1e-6)
    assert "context" in result.without_outliers.tokens


def test_a_text_is_read_once(model, store, dataset):
    sae = build()
    short = store(sae)
    short.dataset = dataset.select([0])
    short.iterable_sequences = short._iterate_tokenized_sequences()
    with pytest.warns(UserWarning, match=r"the text ended after \d+ of 1000000 tokens"):
        result = quiet(sae, short, model, tokens=1_000_000)
    whole = len(model.tokenizer(dataset[0]["text"])["input_ids"])
    assert whole - CONTEXT < result.n_tokens < whole + 2 * CONTEXT + whole // CONTEXT


@pytest.mark.parametrize("n_prompts", range(9, 14))
def test_a_text_of_no_whole_number_of_batches_is_read_once(model, store, n_prompts):
    """SAELens' store begins anew at the end of its text."""
    sae = build()
    ids = torch.arange(n_prompts * CONTEXT).view(n_prompts, CONTEXT).tolist()

    def read() -> ActivationsStore:
        return ActivationsStore.from_sae(
            model, sae, Dataset.from_dict({"tokens": ids}), streaming=False, store_batch_size_prompts=4
        )

    with pytest.warns(UserWarning, match=f"the text ended after {n_prompts * CONTEXT} of 100000 tokens"):
        result = quiet(sae, read(), model, tokens=100_000)
    assert result.n_tokens == n_prompts * CONTEXT
    assert [len(batch) for batch in batches_once(read(), 100, 4)] == [4] * (n_prompts // 4) + [n_prompts % 4] * (
        n_prompts % 4 > 0
    )
    assert [len(batch) for batch in batches_once(read(), 7, 4)] == [4, 3]


def test_contexts_are_kept_of_as_many_tokens_as_norms(model, store):
    sae = build()
    result = quiet(sae, store(sae), model, tokens=256, max_exact_tokens=64)
    assert len(result.tokens) == 64
    known = result.tokens.prompt < 64 // CONTEXT
    assert known.any()
    assert (result.tokens.context[known] != "").all()
    assert (result.tokens.context[~known] == "").all()


# ---- attached SAEs


HOOKS = ("blocks.2.hook_resid_pre", "blocks.1.attn.hook_z")


@pytest.fixture
def attached(model):
    """SAEs by hook that are attached to the model, one with its error term and one past special tokens."""
    saes = {hook: build(hook) for hook in HOOKS}
    model.add_sae(saes[HOOKS[0]], use_error_term=True)
    model.add_sae(saes[HOOKS[1]], use_error_term=False, exclude_special_tokens=True)
    yield saes
    model.reset_saes()


def test_saes_are_judged_on_the_model_without_those_attached(model, store, attached):
    wrappers, ids = dict(model._acts_to_saes), torch.tensor([[5, 6, 7]])
    before, hooks = model(ids), list(model.hook_dict)
    settings = [(each.use_error_term, each.exclude_special_tokens) for each in wrappers.values()]
    options = {"tokens": 64, "cross_entropy_tokens": 64}
    together = quiet(attached, store(attached[HOOKS[0]]), model, **options)
    other = build("blocks.3.hook_resid_pre")
    late = quiet(other, store(other), model, **options)
    assert model._acts_to_saes == wrappers
    assert [(each.use_error_term, each.exclude_special_tokens) for each in wrappers.values()] == settings
    assert list(model.hook_dict) == hooks
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)
    model.reset_saes()
    assert not torch.equal(model(ids), before)
    for name, sae in attached.items():
        assert same(together[name], quiet(sae, store(sae), model, **options))
    assert same(late, quiet(other, store(other), model, **options))


def test_they_are_put_back_after_an_error(model, store, attached):
    ids = torch.tensor([[5, 6, 7]])
    before, wrappers = model(ids), dict(model._acts_to_saes)
    with pytest.raises(ValueError, match=r"no hook 'blocks\.2\.hook_resid_prr'"):
        quiet(build("blocks.2.hook_resid_prr"), store(attached[HOOKS[0]]), model)
    assert model._acts_to_saes == wrappers
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)


def test_hooks_in_what_is_attached_stay(model, store, attached):
    seen = []
    with model.hooks([(f"{HOOKS[0]}.hook_sae_error", lambda error, hook: seen.append(hook.name))]):
        quiet(build(), store(attached[HOOKS[0]]), model, tokens=32)
        assert not seen
        model(torch.tensor([[5, 6, 7]]))
    assert seen == [f"{HOOKS[0]}.hook_sae_error"]


def test_off_a_transformer_bridge(model):
    pytest.importorskip("transformer_lens.model_bridge", reason="came with TransformerLens 3")
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    bridge = SAETransformerBridge.boot_transformers(str(model_folder()), device="cpu", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    clean = bridge(ids)
    bridge.add_sae(build())
    with_sae, hooks = bridge(ids), set(bridge.hook_dict)
    with saes_detached(bridge):
        torch.testing.assert_close(bridge(ids), clean, rtol=0, atol=0)
        assert "blocks.2.hook_in" in bridge.run_with_cache(ids)[1]
    torch.testing.assert_close(bridge(ids), with_sae, rtol=0, atol=0)
    assert set(bridge.hook_dict) == hooks
    bridge.reset_saes()
    torch.testing.assert_close(bridge(ids), clean, rtol=0, atol=0)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"positions": [CONTEXT]}, "positions must be within -32 to 31"),
        ({"positions": []}, "positions must be within"),
        (
            {"tokens": 64, "exclude_special_tokens": list(range(4096 * 4))},
            "no tokens to judge: 64 were read, and all are special",
        ),
    ],
)
def test_bad_options_are_named(model, store, options, message):
    sae = build()
    with pytest.raises(ValueError, match=message):
        quiet(sae, store(sae), model, **options)


def test_hooks_and_widths_are_checked_before_any_work(model, store):
    sae = build()
    with pytest.raises(ValueError, match=r"no hook 'blocks.2.hook_resid_prr'; did you mean"):
        quiet({"good": sae, "bad": build("blocks.2.hook_resid_prr")}, store(sae), model)
    with pytest.raises(ValueError, match="d_in is 100"):
        quiet(build(d_in=100), store(sae), model)
    with pytest.raises(ValueError, match="the mapping is empty"):
        quiet({}, store(sae), model)


@pytest.mark.parametrize("texts", [[], [""], ["And God said"]])
def test_a_text_without_a_whole_prompt_is_named(model, store, texts):
    sae = build()
    short = store(sae)
    short.dataset = Dataset.from_dict({"text": texts})
    short.iterable_sequences = short._iterate_tokenized_sequences()
    with pytest.raises(ValueError, match="no tokens to judge: the text has not one prompt of 32 tokens"):
        quiet(sae, short, model)


def test_an_sae_without_a_token_is_named(model, store):
    saes = {"good": build(), "broken": build()}
    saes["broken"].b_dec.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^broken: no tokens to judge: all 64 hold a NaN"):
        quiet(saes, store(saes["good"]), model, tokens=64)


def test_cached_activations_have_no_tokens(model, store):
    sae = build()
    cached = store(sae)
    cached.dataset = None
    with pytest.raises(ValueError, match="evaluate_activations instead"):
        quiet(sae, cached, model)


def test_an_sae_that_names_no_hook_is_fed_from_the_store_s(model, store):
    sae, nameless = build(), build()
    nameless.cfg.metadata.hook_name = None
    assert same(quiet(nameless, store(sae), model, tokens=64), quiet(sae, store(sae), model, tokens=64))
