"""Evaluations and pages by several ranks are those of one process."""

from __future__ import annotations

import json
import math
from typing import Any

import evaluations_work as work
import numpy as np
import pandas as pd
import pytest
import torch
from processes import on_ranks

from sae_lens_afa import AFAMetrics
from sae_lens_afa.evals import judge
from sae_lens_afa.feature_page import companions, token_view

# Sums in another order; all else is equal bit for bit.
ROUNDING = 1e-12
RANKS = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, and where its arrays are."""
    folder = tmp_path_factory.mktemp("alone")
    work.small_sae(work.HOOKS[0], 1).save_model(folder / "sae")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        for module, name in ((judge, "CALIBRATION_TOKENS"), (companions, "_TOKENS"), (token_view, "TOKENS")):
            patch.setattr(module, name, getattr(module, name))
        found = json.loads(json.dumps(work.evaluations(folder)))
    torch.set_num_threads(threads)
    return found, folder


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What each rank finds, and where their arrays are."""
    folder = tmp_path_factory.mktemp("ranks")
    work.small_sae(work.HOOKS[0], 1).save_model(folder / "sae")
    return on_ranks(RANKS, folder, "evaluations"), folder


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal but for the rounding of sums, all the way down."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=ROUNDING) or (math.isnan(ours) and math.isnan(theirs))
    else:
        assert ours == theirs


CASES = [*work.LENGTHS, "several", "outliers", "few for outliers", "sampled"]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_has_the_result_of_one_process(of_ranks, alone, case):
    expected, _, after = alone[0][case]
    for rank, found in enumerate(of_ranks[0]):
        assert_same(found[case][0], expected)
        assert found[case][2] == (after if rank == 0 else None), "the text is read on from another place"


def test_cases_are_what_they_are_to_be(alone):
    """Outliers are left out, a sample is one, losses are measured on some of the text."""
    found = {case: alone[0][case][0] for case in CASES}
    of_all, kept = (each["metrics"] for each in (found["outliers"][""], found["outliers"][""]["without outliers"]))
    assert 0 < kept["n_tokens"] < of_all["n_tokens"] == 8 * work.BATCH
    assert len(found["sampled"][""]["tokens"]["prompt"]) == 100
    assert found["whole"][""]["metrics"]["ce_loss_with_sae"] > 0
    assert set(found["several"]["few positions"]["tokens"]["position"]) == {work.CONTEXT - 2, work.CONTEXT - 1}


def test_the_first_rank_says_where_the_text_ended(of_ranks, alone):
    found, warned, _ = alone[0]["end of the text"]
    assert len(warned) == 1
    for rank, ours in enumerate(each["end of the text"] for each in of_ranks[0]):
        assert_same(ours[0], found)
        assert ours[1] == (warned if rank == 0 else [])


def test_all_ranks_refuse_alike(of_ranks, alone):
    assert "are special tokens" in alone[0]["refused"]
    assert {rank["refused"] for rank in of_ranks[0]} == {alone[0]["refused"]}


@pytest.mark.parametrize("case", work.LENGTHS)
def test_a_page_shows_what_that_of_one_process_shows(of_ranks, alone, case):
    """Also which of equally strong examples are shown, and what was drawn."""
    theirs = np.load(alone[1] / f"{case}-alone.npz")
    for rank in range(len(of_ranks[0])):
        ours = np.load(of_ranks[1] / f"{case}-{rank}.npz")
        assert set(ours) == set(theirs)
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


def test_a_page_is_written_once(of_ranks, alone):
    assert all(rank["page"] == alone[0]["page"] for rank in of_ranks[0])
    assert sorted(path.name for path in (of_ranks[1] / "page").iterdir()) == ["features.html", "latents.csv"]
    assert all(rank["own activations"] == alone[0]["own activations"] for rank in of_ranks[0])


def test_metrics_of_own_tokens_are_joined(of_ranks):
    alone = AFAMetrics(8)
    work.update(alone, work.tokens_of(RANKS))
    for rank in of_ranks[0]:
        assert_same(rank["gathered"], alone.compute().to_dict())


def test_metrics_are_joined_only_where_there_are_ranks():
    with pytest.raises(RuntimeError, match="start the script with torchrun"):
        AFAMetrics(8).all_gather()


def test_the_commands_share_the_text(of_ranks, alone):
    """`torchrun ... -m sae_lens_afa.cli eval` and `... features`, beside the commands alone."""
    said, folders = alone[0]["commands"], (alone[1], of_ranks[1])
    assert said["eval"].count("written:") == said["features"].count("written:") == 1
    assert [rank["commands"] for rank in of_ranks[0]] == [said] + [dict.fromkeys(said, "")] * (RANKS - 1)
    assert_same(*(json.loads((folder / "eval" / "metrics.json").read_text()) for folder in folders))
    tokens = [pd.read_parquet(folder / "eval" / "tokens.parquet") for folder in folders]
    pd.testing.assert_frame_equal(*tokens, rtol=ROUNDING)
    tables = [pd.read_csv(folder / "features" / "latents.csv") for folder in folders]
    pd.testing.assert_frame_equal(*tables, rtol=ROUNDING)
