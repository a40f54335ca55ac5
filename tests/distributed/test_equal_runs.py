"""Several ranks do what one process does with the same configuration."""

from __future__ import annotations

import numpy as np
import pytest
import ranks_work
import torch
from datasets import Array2D, Dataset, Features
from processes import on_ranks
from runs import OURS, SAELENS
from sae_lens import ActivationsStore

from sae_lens_afa.distributed.distributed_runner import check_shares
from sae_lens_afa.training.resumable_store import ResumableStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A folder with 70 contexts of cached activations, no whole number of batches."""
    folder = tmp_path_factory.mktemp("ranks")
    cfg = ranks_work.config(folder, "topk")
    store = ActivationsStore.from_config(model, cfg, override_dataset=ranks_work.dataset())
    acts = store.get_activations(store.get_batch_tokens(70)).numpy()
    features = Features({cfg.hook_name: Array2D(shape=(32, 192), dtype="float32")})
    Dataset.from_dict({cfg.hook_name: acts}, features=features).save_to_disk(str(folder / "cache"))
    return folder


@pytest.fixture(scope="module")
def of_ranks(folder):
    return on_ranks(2, folder, "equal_runs")


@pytest.fixture(scope="module")
def of_one(folder):
    return ranks_work.all_architectures(folder / "one", ranks_work.OnOne)


@pytest.mark.parametrize("architecture", [*OURS, *SAELENS])
def test_two_ranks_give_the_losses_of_one_process(of_ranks, of_one, architecture):
    first, second = (found[architecture] for found in of_ranks)
    assert first == second
    assert_same_run(first, of_one[architecture])


def test_two_ranks_train_alike_on_activations_from_a_disk(of_ranks, folder, model):
    first, second = (found["sources"]["trained"] for found in of_ranks)
    assert first == second
    settings = {"store_batch_size_prompts": 4, **ranks_work.cached(folder)}
    alone = ranks_work.train(folder / "alone", ranks_work.OnOne, "afa_pursuit", model, **settings)
    assert_same_run(first, alone)


def assert_same_run(ours, theirs) -> None:
    assert len(ours["losses"]) == ranks_work.STEPS
    for step, (a, b) in enumerate(zip(ours["losses"], theirs["losses"], strict=True)):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6), step
    assert ours["samples"] == theirs["samples"]
    a, b = np.array(ours["fired"]), np.array(theirs["fired"])
    # A pursuit's fit leaves a feature in twenty thousand at 1e-16 of what others have, here and not there.
    assert np.abs(a - b).sum() <= 2e-3 * b.sum()
    assert (np.array(ours["since"]) != np.array(theirs["since"])).mean() <= 0.01
    for field in ("weights", "buffers"):
        assert ours[field] == pytest.approx(theirs[field], rel=1e-5), field


def test_an_sae_trains_alone_afterwards_and_ranks_that_part_say_so(of_ranks):
    for found in (rank["afterwards"] for rank in of_ranks):
        assert found["activation"] == "BatchTopK"
        assert "update_topk_threshold" not in found["attributes"]
        assert "the ranks' weights are no longer the same after step 0" in found["parted"]


@pytest.mark.parametrize("architecture", OURS)
def test_a_rank_without_a_finite_token_keeps_up_with_the_others(of_ranks, architecture):
    alone = ranks_work.bad_share()[architecture]
    for found in of_ranks:
        kept = found["bad share"][architecture]
        assert kept.keys() == alone.keys()
        for name, values in alone.items():
            np.testing.assert_allclose(kept[name], values, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["live", "cached"])
def test_a_store_gives_the_batches_of_one_process(of_ranks, folder, model, name):
    """Also after rank 0 alone has read on in the text, as evaluations do."""
    first, second = (found["sources"][name] for found in of_ranks)
    assert first == second
    settings = ranks_work.cached(folder) if name == "cached" else {}
    cfg = ranks_work.config(folder, "topk", store_batch_size_prompts=4, n_batches_in_buffer=16, **settings)
    alone = ResumableStore.of(ActivationsStore.from_config(model, cfg, override_dataset=ranks_work.dataset()))
    torch.manual_seed(0)
    taken = [next(alone) for _ in range(10)]
    if name == "live":
        alone.get_batch_tokens(3)
    taken += [next(alone) for _ in range(10)]
    expected = [batch.double().sum(-1)[:5].tolist() for batch in taken]
    # Through a disk all is read as it was written.
    np.testing.assert_allclose(first, expected, rtol=0, atol=0 if name == "cached" else 1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_batch_size_tokens": 127},
            "train_batch_size_tokens is 127, which 2 ranks cannot share equally",
        ),
        ({"prefetch_llm_batches": True}, "prefetch_llm_batches does not go with several ranks"),
        (
            {"store_batch_size_prompts": 3, "use_cached_activations": True, "cached_activations_path": "x"},
            "store_batch_size_prompts is 3: with cached activations it must be a multiple of the 2 ranks",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        check_shares(ranks_work.config(tmp_path, "topk", **settings), 2)
