"""Arms: grids as text, and what is refused before anything is trained."""

from __future__ import annotations

import pytest

import sae_lens_afa  # noqa: F401  (registers the architectures)
from sae_lens_afa.experiments.arms import Arm, check_runs


def test_an_arm_is_read_from_text():
    arm = Arm.parse("raw=top_afa:afa_coefficient=1/32,0.5;normalize_activations=none;k_aux=7")
    assert arm == Arm("top_afa", "afa_coefficient", (1 / 32, 0.5), {"normalize_activations": "none", "k_aux": 7}, "raw")
    assert [run.name for run in arm.runs()] == ["raw afa_coefficient=0.03125", "raw afa_coefficient=0.5"]


def test_whole_numbers_are_integers_as_topk_needs_them():
    (run,) = Arm.parse("topk:k=4").runs()
    assert isinstance(run.value, int)
    assert run.sae_config(8, 16).k == 4


@pytest.mark.parametrize("text", ["topk", "topk:", "topk:k", "topk:k=", "topk:k=a", "topk:k=4;x", ":k=4", "x=:k=4"])
def test_other_text_is_refused_with_the_form_that_is_expected(text):
    with pytest.raises(ValueError, match=r"^arms .*expected ARCHITECTURE:FIELD=VALUE"):
        Arm.parse(text)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm("topkk", "k", (4,)), "unknown architecture 'topkk'; did you mean .*topk"),
        (Arm("topk", "kk", (4,)), "architecture 'topk' has no setting 'kk'"),
        (Arm("top_afa", "afa_coefficient", (-1.0,)), "top_afa afa_coefficient=-1: .*afa_coefficient"),
        (Arm("topk", "k", (4,), {"normalize_activations": "expected_average_only_in"}), "needs an estimate of scale"),
        (Arm("topk", "k", (4, 4)), "topk k=4 is there twice"),
        (Arm("topk", "k", ()), "nothing to compare"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(arm, message):
    with pytest.raises(ValueError, match=message):
        check_runs(arm.runs(), 8, 16)


def test_an_arm_may_have_learning_rates_of_its_own():
    arm = Arm.parse("topk:k=4,8;lr=[0.001, 0.01]")
    assert arm == Arm("topk", "k", (4, 8), rates=(0.001, 0.01))
    assert [(run.value, run.lr) for run in arm.runs(rates=(1.0,))] == [(4, 0.001), (8, 0.001), (4, 0.01), (8, 0.01)]
    assert [run.lr for run in Arm("topk", "k", (4,)).runs(rates=(1.0, 2.0))] == [1.0, 2.0]


def test_what_an_arm_leaves_to_the_length_of_the_run_is_set():
    growths = [
        Arm("afa_pursuit", "threshold_scale", (1,), settings).runs(steps)[0].sae_config(8, 16).growth_steps
        for settings, steps in (({}, 500), ({}, None), ({"growth_steps": 7}, 500))
    ]
    assert growths == [200, None, 7]


def test_settings_that_count_steps_change_with_a_budget_where_an_arm_says_for_which_they_are():
    settings = {"growth_steps": 1000, "threshold_scale": 1.0}
    given, scaled = (Arm("afa_pursuit", "norm_floor", (0.1,), settings, at_steps=at) for at in (None, 2500))
    assert given.runs(5000)[0].settings == settings
    assert scaled.runs(5000)[0].settings == {"growth_steps": 2000, "threshold_scale": 1.0}
