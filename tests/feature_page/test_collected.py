"""What is collected on a text, beside the literal sums over a dense [tokens, d_sae] matrix."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from page_helpers import CONTEXT, small_topk

from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page.active_entries import ActiveEntries, active_entries
from sae_lens_afa.feature_page.collected import SAMPLED, STRONGEST, collect
from sae_lens_afa.feature_page.companions import Companions
from sae_lens_afa.feature_page.examples import BEFORE, ExampleKeeper
from sae_lens_afa.feature_page.tally import BINS, Tally

PROMPTS = 24
TOKENS = PROMPTS * CONTEXT


def collected_on(sae, store, model, **options):
    settings = {
        "tokens": TOKENS, "batch_size_prompts": PROMPTS, "positions": None, "exclude_special_tokens": None, "seed": 0,
        "progress": False, **options,
    }  # fmt: skip
    return collect(SAESpace(sae), store(sae), model, **settings)


@pytest.fixture
def dense(model, store):
    """The SAE, and its feature_acts on the same prompts, [prompts, context, d_sae]."""
    sae = small_topk()
    tokens = store(sae).get_batch_tokens(PROMPTS)
    with torch.no_grad():
        acts = model.run_with_cache(tokens, prepend_bos=False)[1][sae.cfg.metadata.hook_name]
        return sae, sae.encode(acts)


def test_counts_and_sums_are_those_of_the_dense_matrix(dense, store, model):
    sae, acts = dense
    found = collected_on(sae, store, model)
    flat = acts.flatten(0, 1)
    assert found.n_tokens == TOKENS
    assert torch.equal(found.tally.count, (flat > 0).sum(0))
    assert torch.allclose(found.tally.total, flat.double().sum(0), rtol=1e-5)
    assert torch.allclose(found.tally.squares, flat.double().square().sum(0), rtol=1e-5)
    alive = found.tally.count > 0
    assert 0 < int((~alive).sum()) < len(alive)
    assert torch.allclose(found.tally.largest[alive], flat.amax(0)[alive], rtol=1e-5)
    assert torch.equal(found.tally.histogram.sum(1), found.tally.count)


def test_the_strongest_are_of_different_prompts(dense, store, model):
    sae, acts = dense
    found = collected_on(sae, store, model).strongest
    largest = acts.amax(1)  # [prompts, d_sae]
    for latent in range(sae.cfg.d_sae):
        expected = largest[:, latent].sort(descending=True).values[:STRONGEST]
        expected = expected[expected > 0]
        kept = found.place[latent] >= 0
        assert torch.allclose(found.value[latent][kept], expected, rtol=1e-5)
        places = found.place[latent][kept]
        assert torch.allclose(acts.flatten(0, 1)[places, latent], expected, rtol=1e-5)
        assert len(set((places // CONTEXT).tolist())) == len(places)


def test_the_sample_is_of_active_tokens_strongest_first(dense, store, model):
    sae, acts = dense
    found = collected_on(sae, store, model).sampled
    flat = acts.flatten(0, 1)
    for latent in range(sae.cfg.d_sae):
        places = found.place[latent][found.place[latent] >= 0]
        assert len(places) == min(SAMPLED, int((flat[:, latent] > 0).sum()))
        assert len(set(places.tolist())) == len(places)
        values = flat[places, latent]
        assert bool((values > 0).all())
        assert torch.equal(values, values.sort(descending=True).values)


def test_the_sample_is_fair():
    """Of 400 tokens on which a latent is active, each is kept about as often as another, whatever its value."""
    kept = torch.zeros(400)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        keeper = ExampleKeeper(1, 20)
        for start in range(0, 400, 50):
            batch = ActiveEntries(torch.zeros(50).long(), torch.arange(50), torch.arange(50.0) + start + 1, 50, 50)
            keeper.add(batch, torch.rand(50, generator=generator), batch, start)
        kept[keeper.place[0]] += 1
    # Binomial with n 300, p 1/20: mean 15, standard deviation 3.8; quarters of 100 tokens: 1500, 33 with fixed totals.
    assert bool(((kept.view(4, 100).sum(1) - 1500).abs() < 5 * 33).all())


def test_windows_are_the_activations_around(dense, store, model):
    sae, acts = dense
    found = collected_on(sae, store, model).strongest
    for latent in range(sae.cfg.d_sae):
        for place, window in zip(found.place[latent], found.window[latent], strict=True):
            if place < 0:
                continue
            prompt, position = divmod(int(place), CONTEXT)
            for i, shown in enumerate(window):
                at = position - BEFORE + i
                expected = float(acts[prompt, at, latent]) if 0 <= at < CONTEXT else 0.0
                assert float(shown) == pytest.approx(expected, rel=2**-7)  # bfloat16 has 8 bits


def test_companions_come_together(dense, store, model):
    sae, acts = dense
    found, share = collected_on(sae, store, model).companions.strongest(4)
    is_active = (acts.flatten(0, 1) > 0).double()
    both = is_active.T @ is_active
    count = both.diagonal()
    expected = both / (count[:, None] * count).sqrt().clamp(min=1)
    expected[both < 3] = 0
    expected.fill_diagonal_(0)
    assert torch.allclose(share.double(), expected.topk(4, dim=1).values, rtol=1e-5)
    assert torch.equal(found < 0, share == 0)
    rows = torch.arange(len(found))[:, None]
    assert torch.allclose(torch.where(found < 0, 0, expected[rows, found.clamp(min=0)]), share.double(), rtol=1e-5)


def test_dense_codes_are_counted_on_fewer_tokens(monkeypatch):
    monkeypatch.setattr("sae_lens_afa.feature_page.companions._PAIRS", 250)
    companions = Companions(10, 4)
    everything = ActiveEntries(*torch.cartesian_prod(torch.arange(10), torch.arange(4)).T, torch.ones(40), 4, 4)
    companions.add(everything, torch.Generator())
    companions.add(everything, torch.Generator())
    assert companions._pairs == 200  # two tokens of ten features, 100 pairs each


@pytest.mark.parametrize("elements", [1, 48 * 7, 2**24])
def test_tokens_may_be_coded_in_any_portions(dense, store, model, monkeypatch, elements):
    sae, _ = dense
    whole = collected_on(sae, store, model)
    monkeypatch.setattr("sae_lens_afa.feature_page.portions.ELEMENTS", elements)
    parts = collected_on(sae, store, model, batch_size_prompts=5)
    # A matrix product of another height rounds otherwise, and may decide a near-tie of TopK otherwise.
    assert int((whole.tally.count - parts.tally.count).abs().sum()) <= 4
    # Not the places: tokens at which a latent is equally active, as at the first of a prompt, may change places.
    differ = ~torch.isclose(whole.strongest.value, parts.strongest.value, rtol=1e-5)
    assert int(differ.sum()) <= 4


def test_only_tokens_to_judge_are_collected(model, store, dense):
    sae, acts = dense
    last = collected_on(sae, store, model, positions=[-1], tokens=PROMPTS)
    assert torch.equal(last.tally.count, (acts[:, -1] > 0).sum(0))
    assert len(last.prompts) >= PROMPTS
    without = collected_on(sae, store, model, exclude_special_tokens=True)
    assert without.n_tokens < TOKENS
    assert bool((without.strongest.place[without.strongest.place >= 0] % CONTEXT > 0).all())  # the first is BOS


def test_a_token_that_is_not_finite_is_left_out():
    sae = small_topk()
    rows = torch.randn(6, 192)
    rows[2, 0] = torch.nan
    entries = active_entries(SAESpace(sae), rows, torch.arange(6), 6, 6)
    assert 2 not in entries.place.tolist()
    assert set(entries.place.tolist()) == {0, 1, 3, 4, 5}
    assert bool(entries.value.isfinite().all())


@given(st.data())
@settings(max_examples=30)
def test_examples_are_those_with_the_largest_keys_however_they_come(data):
    n_latents, per_latent = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    batches = data.draw(
        st.lists(st.lists(st.tuples(st.integers(0, n_latents - 1), st.integers(0, 9)), unique=True), max_size=5)
    )
    keeper, seen, generator = ExampleKeeper(n_latents, per_latent), [], torch.Generator().manual_seed(0)
    for number, batch in enumerate(batches):
        pairs = torch.tensor(sorted(batch), dtype=torch.long).view(-1, 2)
        value, key = (torch.rand(len(pairs), generator=generator) + 0.1 for _ in range(2))
        entries = ActiveEntries(pairs[:, 0], pairs[:, 1], value, 10, 5)
        keeper.add(entries, key, entries, 10 * number)
        seen += zip(pairs[:, 0].tolist(), key.tolist(), (pairs[:, 1] + 10 * number).tolist(), strict=True)
    for latent in range(n_latents):
        of_latent = sorted((each[1:] for each in seen if each[0] == latent), reverse=True)
        expected = [place for _, place in of_latent[:per_latent]]
        assert keeper.place[latent].tolist() == expected + [-1] * (per_latent - len(expected))


def test_the_histogram_counts_between_its_edges():
    tally, value = Tally(1), torch.tensor([0.01, 0.5, 0.5, 1.0, 3.9, 1e-9, 1e9])
    place = torch.arange(7)
    tally.add(ActiveEntries(torch.zeros(7).long(), place, value.clamp(max=3.9), 7, 7))  # sets the scale
    tally.add(ActiveEntries(torch.zeros(7).long(), place, value, 7, 7))
    edges, counts = tally.bin_edges(), tally.histogram[0].numpy()
    assert len(counts) == BINS
    for v, times in ((0.01, 2), (0.5, 4), (1.0, 2)):
        assert counts[[i for i in range(BINS) if edges[i] <= v < edges[i + 1]]] == [times]
    assert counts[0] == 2  # what is too small
    assert counts[-1] == 1  # what is too large
    assert counts.sum() == 14
