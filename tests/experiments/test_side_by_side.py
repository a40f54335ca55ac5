"""SAEs side by side: as SAELens trains them, independent of each other, and one that fails fails alone."""

from __future__ import annotations

from itertools import repeat

import pytest
import torch
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_lens_afa.experiments.arms import Run
from sae_lens_afa.experiments.side_by_side import OwnRandom, Training, build, own_generator, train_together

RUNS = [
    Run("topk", "topk", "k", 3),
    Run("batchtopk", "batchtopk", "k", 3),
    Run("feature_choice", "feature_choice", "k", 2),
    Run("top_afa", "top_afa", "afa_coefficient", 1 / 32),
    Run("afa_threshold", "afa_threshold", "threshold_scale", 1.0, {"threshold_warm_up_steps": 10}),
]
TRAINING = Training(
    steps=30, batch_size=64, lr=1e-2, dead_feature_window=5, lr_warm_up_steps=4, lr_decay_steps=6
)  # fmt: skip


def batches(seed=0, width=8):
    draw = OwnRandom("data", seed)
    while True:
        with draw():
            yield {"x": torch.randn(TRAINING.batch_size, width)}


def train(runs, seed=0, **changes):
    saes = {run.name: build(run, 8, 24, seed, "cpu") for run in runs}
    return train_together(saes, dict.fromkeys(saes, "x"), batches(seed), changes.get("training", TRAINING))


def states(trained):
    return {name: result.sae.state_dict() for name, result in trained.items()}


def test_it_is_sae_lens_own_training():
    saes = {run.name: build(run, 8, 24, 0, "cpu") for run in RUNS}
    trainer = MultiSAETrainer(TRAINING.trainer_config("cpu"), saes, dict.fromkeys(saes, "x"), batches())
    expected = {name: sae.state_dict() for name, sae in trainer.fit().items()}
    # The same operations in the same order on one thread: equal to the bit.
    torch.testing.assert_close(states(train(RUNS)), expected, rtol=0, atol=0)


def test_an_sae_does_not_depend_on_what_is_trained_beside_it_or_before():
    together = states(train(RUNS))
    torch.rand(17)
    for run in RUNS:
        torch.testing.assert_close(states(train([run]))[run.name], together[run.name], rtol=0, atol=0)


def test_seeds_differ():
    a, b = (states(train(RUNS[:1], seed))[RUNS[0].name]["W_dec"] for seed in (0, 1))
    assert not torch.allclose(a, b)


def test_what_is_drawn_with_an_own_state_leaves_the_other_one_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    draw = OwnRandom("data", 0)
    with draw():
        first = torch.rand(2)
    before = torch.rand(2)
    with draw():
        second = torch.rand(2)
    assert torch.equal(torch.cat([before, torch.rand(2)]), expected)
    assert torch.equal(torch.cat([first, second]), torch.rand(4, generator=own_generator("data", 0)))
    assert not torch.equal(torch.rand(2, generator=own_generator("weights", 0)), first)


def test_an_sae_that_raises_is_left_behind_and_the_others_go_on():
    # SAELens' TopK raises under layer_norm as soon as a latent is dead.
    broken = Run("broken", "topk", "k", 1, {"normalize_activations": "layer_norm"})
    trained = train([broken, *RUNS])
    assert trained[broken.name].failure.startswith("step ")
    assert "Error" in trained[broken.name].failure
    good = {run.name: trained[run.name] for run in RUNS}
    assert not any(result.failure for result in good.values())
    torch.testing.assert_close(states(good), states(train(RUNS)), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 30])
def test_a_loss_that_is_not_finite_is_a_failure(steps):
    run = RUNS[0]
    sae = build(run, 8, 24, 0, "cpu")
    with torch.no_grad():
        sae.W_enc[0, 0] = torch.nan
    training = Training(steps=steps, batch_size=64, lr=1e-2, dead_feature_window=5)
    advanced = []
    trained = train_together({"a": sae}, {"a": "x"}, batches(), training, advance=advanced.append)
    assert trained["a"].failure == "step 0: the loss is nan"
    assert sum(advanced) == steps  # the bar gets to its end


def test_parameters_that_are_not_finite_after_training_are_a_failure():
    sae = build(RUNS[0], 8, 24, 0, "cpu")
    stream = iter([*[{"x": torch.randn(64, 8)} for _ in range(3)], *repeat({"x": torch.full((64, 8), torch.inf)}, 3)])
    training = Training(steps=6, batch_size=64, lr=1e-2, dead_feature_window=5)
    trained = train_together({"a": sae}, {"a": "x"}, stream, training)
    assert trained["a"].failure == "parameters are not finite after training"


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory", "x"])
def test_lack_of_memory_is_not_a_failure_of_the_sae(message, monkeypatch):
    sae = build(RUNS[0], 8, 24, 0, "cpu")

    def fail(step_input):
        raise RuntimeError(message)

    monkeypatch.setattr(sae, "training_forward_pass", fail)
    if message == "x":
        trained = train_together({"a": sae}, {"a": "x"}, batches(), TRAINING)
        assert trained["a"].failure == "step 0: RuntimeError: x"
    else:
        with pytest.raises(RuntimeError, match="allocate memory"):
            train_together({"a": sae}, {"a": "x"}, batches(), TRAINING)


def test_settings_of_training_are_checked_and_scale_with_its_length():
    longer = TRAINING.with_steps(300)
    assert (longer.lr_warm_up_steps, longer.lr_decay_steps, longer.dead_feature_window) == (40, 60, 50)
    assert TRAINING.with_steps(3).dead_feature_window == 1
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"dead_feature_window": 0}, {"steps": 5, "lr_decay_steps": 6}):
        with pytest.raises(ValueError, match="must be at least"):
            Training(**{"steps": 10, "batch_size": 8, "lr": 0.1, "dead_feature_window": 5, **wrong})
    with pytest.raises(ValueError, match="steps must be at least 1"):
        TRAINING.with_steps(0)
