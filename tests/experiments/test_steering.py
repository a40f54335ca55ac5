"""A coefficient steered to a target L0, and what cannot be steered."""

from __future__ import annotations

import pytest
import torch

import sae_lens_afa  # noqa: F401  (registers the architectures)
from sae_lens_afa.experiments import Arm, ground_truth_sweep, run_sweep
from sae_lens_afa.experiments.arms import Run, check_runs
from sae_lens_afa.experiments.side_by_side import build
from sae_lens_afa.experiments.steering import L0Steering


@pytest.mark.parametrize(
    ("architecture", "start"), [("standard", {"l1_coefficient": 0.1}), ("jumprelu", {"l0_coefficient": 0.01})]
)
def test_an_sae_comes_near_its_target(architecture, start, tmp_path):
    arms = [Arm(architecture, "target_l0", (2, 4), start)]
    sweep = ground_truth_sweep("tiny", seeds=[0], steps=1500, arms=arms)
    rows = run_sweep(sweep, tmp_path / "out", progress=False).rows
    # Batches of 32 tokens scatter by a fifth; the control has seen 150 of them, from five times the target on.
    for row in rows:
        assert row["l0_mean"] == pytest.approx(row["value"], rel=0.25), row
    assert rows[0]["l0_mean"] < rows[1]["l0_mean"]


class Trainer:
    def __init__(self, scheduler):
        self.coefficient_schedulers = {"l0": scheduler, "pre_act": None}


class Scheduler:
    final_value = 1.0


def test_the_coefficient_rises_while_the_code_is_too_dense_and_falls_while_it_is_too_sparse():
    scheduler = Scheduler()
    steering = L0Steering(Trainer(scheduler), 2.0)
    values = []
    for step, l0 in enumerate([8] * 30 + [2] * 10 + [1] * 30):
        acts = torch.zeros(5, 10)
        acts[:, :l0] = 1
        steering.look(step, acts)
        values.append(scheduler.final_value)
    assert values[0] == values[9]  # looked at every ten steps
    assert 1 < values[0] < values[10] < values[20]
    assert 1 < values[30] < values[0]  # at the target, what was added for the moment is gone
    assert values[40] > values[50] > values[60]
    assert values[40] < 1


@pytest.mark.parametrize("layout", [torch.Tensor.to_sparse, torch.Tensor.clone])
def test_sparse_codes_count_alike(layout):
    scheduler = Scheduler()
    L0Steering(Trainer(scheduler), 2.0).look(0, layout(torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]])))
    assert scheduler.final_value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run("a", "topk", "target_l0", 3), "architecture 'topk' has no coefficient to steer to a target_l0"),
        (Run("a", "afa_pursuit", "target_l0", 3), "has no coefficient to steer"),
        (Run("a", "jumprelu", "target_l0", 0), "target_l0 must be a finite number > 0, got 0"),
        (Run("a", "jumprelu", "target_l0", 3, {"l0_coefficient": 0.0}), "l0_coefficient must be above 0 to be steered"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_anything_is_trained(run, message):
    with pytest.raises(ValueError, match=message):
        check_runs([run], 8, 16)


def test_matryoshka_has_nested_widths_that_fit():
    sae = build(Run("a", "matryoshka_batchtopk", "k", 2), 8, 32, 0, "cpu")
    assert sae.cfg.matryoshka_widths == [2, 4, 8, 16, 32]
    given = Run("a", "matryoshka_batchtopk", "k", 2, {"matryoshka_widths": [8, 32]})
    assert build(given, 8, 32, 0, "cpu").cfg.matryoshka_widths == [8, 32]
