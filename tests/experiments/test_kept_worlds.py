"""Worlds and samples that are kept on disk: what comes back is what was made, and nothing is made twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_lens_afa.experiments import ground_truth_sweep, run_sweep
from sae_lens_afa.experiments.arms import Arm
from sae_lens_afa.experiments.kept_worlds import made, pooled_batches
from sae_lens_afa.experiments.side_by_side import OwnRandom
from sae_lens_afa.experiments.worlds import WORLDS, World
from sae_lens_afa.files import cache_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_CACHE", str(tmp_path / "cache"))
    made.cache_clear()
    yield tmp_path / "cache"
    made.cache_clear()


@pytest.fixture
def bench(cache, monkeypatch):
    """A world of all that SynthSAEBench has, and small."""
    world = replace(
        WORLDS["synth-bench-small"], hidden_dim=12, num_features=60, orthogonalization_steps=3, hierarchy=(4, 2, 2),
        num_latents=15,
    )  # fmt: skip
    monkeypatch.setitem(WORLDS, "bench", world)
    return world


def drawn(model, n):
    with OwnRandom("a test", 0)():
        return model.sample(n)


def test_a_world_is_made_once_and_comes_back_as_it_was(bench, cache, monkeypatch):
    fresh = made("bench")
    made.cache_clear()
    monkeypatch.setattr(World, "make", lambda *_: pytest.fail("made a second time"))
    kept = made("bench")
    assert torch.equal(drawn(kept, 500), drawn(fresh, 500))
    assert [path.name.rpartition("-")[0] for path in cache.iterdir()] == ["bench"]


def test_features_made_quasi_orthogonal_on_another_device_are_the_same_ones():
    # The CPU by another name takes the way that a GPU takes.
    assert torch.equal(drawn(WORLDS["tiny"].make("cpu:0"), 50), drawn(WORLDS["tiny"].make(), 50))


def test_another_configuration_is_another_world(bench, cache, monkeypatch):
    made("bench")
    made.cache_clear()
    monkeypatch.setitem(WORLDS, "bench", replace(bench, max_prob=0.2))
    made("bench")
    assert len(list(cache.iterdir())) == 2


def test_what_is_stopped_half_way_leaves_nothing(bench, cache, monkeypatch):
    def half(self, path):
        path.mkdir()
        (path / "a").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr("sae_lens.synthetic.SyntheticModel.save", half)
    with pytest.raises(OSError, match="disk full"):
        made("bench")
    assert not list(cache.iterdir())


def test_a_pool_is_drawn_once_and_each_seed_has_its_own_order(cache):
    first = pooled_batches("tiny", 96, 32, 0)
    epochs = [torch.cat([next(first) for _ in range(3)]) for _ in range(2)]
    (file,) = cache.glob("tiny-*-96.npy")
    pool = np.load(file).tolist()
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(pool)
    assert not torch.equal(epochs[0], epochs[1])
    before = file.stat().st_mtime_ns
    again, other = pooled_batches("tiny", 96, 32, 0), pooled_batches("tiny", 96, 32, 1)
    assert torch.equal(next(again), epochs[0][:32])
    assert not torch.equal(next(other), epochs[0][:32])
    assert file.stat().st_mtime_ns == before


def test_a_sweep_of_fewer_latents_than_features_on_a_pool(bench, cache, tmp_path):
    sweep = ground_truth_sweep(
        "tiny", worlds=["bench"], seeds=[0], arms=[Arm("topk", "k", (2,)), Arm("afa_pursuit", "threshold_scale", (1,))],
        steps=10, pool=300,
    )  # fmt: skip
    result = run_sweep(sweep, tmp_path / "out", progress=False)
    assert [(row["status"], row["d_in"], row["d_sae"]) for row in result.rows] == [("ok", 12, 15)] * 2
    text = (tmp_path / "out" / "report.md").read_text()
    assert "12 dimensions, 60 features, 15 latents" in text
    assert "Samples are from a pool of 300, used again in another order." in text


def test_a_pool_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="pool must be at least a batch of 32 samples, got 31"):
        ground_truth_sweep("tiny", pool=31)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("SAE_LENS_AFA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sae-lens-afa"
    monkeypatch.setenv("SAE_LENS_AFA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_the_benchmark_is_the_published_one():
    """The numbers of arXiv 2602.14687's public configuration."""
    config = WORLDS["synth-bench"].config().to_dict()
    assert (config["num_features"], config["hidden_dim"], config["bias"], config["seed"]) == (16384, 768, 0.5, 42)
    probability = config["firing_probability"]
    assert [probability[name] for name in ("exponent", "max_prob", "min_prob")] == [0.5, 0.4, 5e-4]
    hierarchy = config["hierarchy"]
    assert [hierarchy[name] for name in ("total_root_nodes", "branching_factor", "max_depth")] == [128, 4, 3]
    assert hierarchy["mutually_exclusive_portion"] == 1.0
    assert hierarchy["compensate_probabilities"]
    assert hierarchy["scale_children_by_parent"]
    assert [config["correlation"][name] for name in ("rank", "correlation_scale")] == [25, 0.1]
    assert [config["orthogonalization"][name] for name in ("num_steps", "lr")] == [100, 3e-4]
    assert [config["mean_firing_magnitudes"][name] for name in ("start", "end")] == [5.0, 4.0]
    assert [config["std_firing_magnitudes"][name] for name in ("mean", "std")] == [0.5, 0.5]
    assert WORLDS["synth-bench"].latents == 4096
