"""The resumable stream gives SAELens' batches, and can be left and taken up again anywhere."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features
from hypothesis import given
from hypothesis import strategies as st
from runs import runner_config
from sae_lens import ActivationsStore
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from sae_lens.training.mixing_buffer import mixing_buffer

from sae_lens_afa.demo import load_text
from sae_lens_afa.training.contexts import Place, packed_contexts
from sae_lens_afa.training.mixing import Mixed, MixingBuffer
from sae_lens_afa.training.resumable_store import ResumableStore
from sae_lens_afa.training.run_state import load_stream, save_run_state

# Few kinds of tokens, so that documents often begin with the special ones.
documents = st.lists(
    st.lists(st.integers(0, 3), max_size=9).map(lambda d: torch.tensor(d, dtype=torch.long)), max_size=8
)
special = st.sampled_from([None, 0, 1])


# A context of one token would be its beginning for ever.
@given(documents, st.integers(2, 7), special, special)
def test_contexts_are_those_of_saelens_from_any_place_on(texts, size, begin, separator):
    expected = list(
        concat_and_batch_sequences(iter(texts), size, begin_batch_token_id=begin, sequence_separator_token_id=separator)
    )
    found = list(packed_contexts(texts, size, begin=begin, separator=separator, place=Place()))
    assert [c.tolist() for c, _ in found] == [c.tolist() for c in expected]
    for i, (_, place) in enumerate(found):
        rest = packed_contexts(texts[place.row :], size, begin=begin, separator=separator, place=place)
        assert [(c.tolist(), p) for c, p in rest] == [(c.tolist(), p) for c, p in found[i + 1 :]]


@given(
    st.lists(st.integers(0, 9), min_size=30, max_size=30), st.integers(1, 6), st.integers(0, 20),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 11),
)  # fmt: skip
def test_mixed_batches_are_those_of_saelens_and_go_on_from_what_is_kept(sizes, batch, more, mix, leave_at):
    numbers = itertools.accumulate(sizes, initial=0)
    new = [torch.arange(a, b).float()[:, None] for a, b in itertools.pairwise(numbers)]

    def source():
        yield from new
        yield from (torch.full((5, 1), -1.0) for _ in itertools.count())

    torch.manual_seed(0)
    expected = list(itertools.islice(mixing_buffer(batch + more, batch, source(), mix), 12))
    torch.manual_seed(0)
    stream, buffer = source(), None
    found = []
    for i in range(12):
        if i == leave_at or buffer is None:
            content = Mixed() if buffer is None else buffer.content.copied()
            buffer = MixingBuffer(batch + more, batch, stream, mix_fraction=mix, content=content)
        found.append(next(buffer))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def tokens(model, *, width: int = 40) -> Dataset:
    ids = model.to_tokens("".join(load_text().train[:3]), truncate=False)[0]
    return Dataset.from_dict({"input_ids": ids[: len(ids) // width * width].view(-1, width).tolist()})


def cached(model, folder: Path) -> dict[str, Any]:
    """Save activations as SAELens' runner does, 39 contexts: no whole number of the tests' batches."""
    store = store_of(runner_config(folder), model, Dataset.from_dict({"text": load_text().train[:4]}))
    acts = store.get_activations(store.get_batch_tokens(39)).numpy()
    features = Features({"blocks.1.hook_resid_pre": Array2D(shape=(32, 192), dtype="float32")})
    Dataset.from_dict({"blocks.1.hook_resid_pre": acts}, features=features).save_to_disk(str(folder))
    return {"use_cached_activations": True, "cached_activations_path": str(folder)}


CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "no_bos": {"prepend_bos": False, "sequence_separator_token": None},
    "one context a document": {"disable_concat_sequences": True},
    "special tokens left out": {"exclude_special_tokens": True},
    "unmixed": {"activations_mixing_fraction": 0.0},
    "positions": {"seqpos_slice": (4, -3), "n_batches_in_buffer": 8},
}


def batches(store, n: int) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a new epoch
        return [next(store).clone() for _ in range(n)]


def store_of(cfg, model, data) -> ActivationsStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text that is tokenised on the way
        return ActivationsStore.from_config(model, cfg, override_dataset=data)


@pytest.mark.parametrize("case", [*CASES, "tokens", "iterable", "cached"])
def test_a_store_gives_saelens_batches_over_epochs_and_goes_on_from_any(tmp_path, model, case):
    texts = Dataset.from_dict({"text": load_text().train[:4]})
    data: Any = tokens(model) if case == "tokens" else texts.to_iterable_dataset(2) if case == "iterable" else texts
    settings = cached(model, tmp_path / "cache") if case == "cached" else CASES.get(case, {})
    cfg = runner_config(tmp_path, **settings)
    torch.manual_seed(0)
    theirs = store_of(cfg, model, data)
    expected, n = batches(theirs, 40), 40
    torch.manual_seed(0)
    ours = ResumableStore.of(store_of(cfg, model, data))
    for done in range(n):
        if done % 9 == 5:
            save_run_state(tmp_path, ours.state_after(None), _NoStatistics())
            state = load_stream(tmp_path)
            assert state is not None
            ours = ResumableStore.of(store_of(cfg, model, data))
            ours.continue_from(state)
        (batch,) = batches(ours, 1)
        assert torch.equal(batch, expected[done])
    assert ours.n_dataset_processed == theirs.n_dataset_processed


class _NoStatistics(torch.nn.Module):
    """Stands for an SAE without buffers."""

    device = torch.device("cpu")


def test_looking_for_a_context_uses_nothing_up(tmp_path, model, dataset):
    cfg = runner_config(tmp_path)
    store = ResumableStore.of(store_of(cfg, model, dataset))
    other = ResumableStore.of(store_of(cfg, model, dataset))
    for _ in range(3):
        assert store.has_a_context()
        assert torch.equal(store.get_batch_tokens(3), other.get_batch_tokens(3))


def test_a_store_that_works_ahead_knows_where_training_is(tmp_path, model, dataset):
    cfg = runner_config(tmp_path)
    store = ResumableStore.of(store_of(cfg, model, dataset), ahead=3, seed=5)
    made = [next(store) for _ in range(9)]
    state = store.state_after(made[5])  # three are in the queue, one waits for its place there
    again = ResumableStore.of(store_of(cfg, model, dataset), ahead=3, seed=6)
    again.continue_from(state)
    torch.rand(3)  # what training draws changes nothing
    assert all(torch.equal(next(again), batch) for batch in made[6:])
    first = store.state_after(None)
    again.continue_from(first)
    again.generator.manual_seed(5)
    assert torch.equal(next(again), made[0])
