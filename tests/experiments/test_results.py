"""The folder of a sweep: whole files, one owner."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from sae_lens_afa.experiments import Run
from sae_lens_afa.experiments.results import ResultFolder
from sae_lens_afa.experiments.rows import identity, key_of

SETTINGS = {"sweep": "x", "training": {"steps": 5}, "arms": ["a", "b"], "worlds": {"flat": {"width": 2}}}
GROWING = ("arms", "worlds")


def row(stream: str = "flat", seed: int = 0, k: float = 3, **metrics: float) -> dict:
    run = Run("topk", "topk", "k", k)
    return {**identity(stream, seed, run), "status": "ok", **metrics}


def test_runs_are_kept_with_their_versions_and_nan_is_null(tmp_path):
    folder = ResultFolder(tmp_path / "out", SETTINGS)
    folder.write("b", [row(l0_mean=math.nan)])
    again = ResultFolder(tmp_path / "out", SETTINGS)
    assert again.finished() == {key_of(row()): row(l0_mean=None)}
    (made_with,) = again.versions([key_of(row())])
    assert {"python", "sae-lens-afa", "sae-lens", "torch"} <= set(made_with)
    assert again.versions([key_of(row(seed=1))]) == []
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["b.json", "runs", "settings.json"]


def test_a_file_of_runs_grows(tmp_path):
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.write("a", [row()])
    folder.write("a", [row(k=4), row("other")])
    assert list(folder.finished()) == [key_of(r) for r in (row(), row(k=4), row("other"))]


def test_a_run_is_known_by_all_that_it_depends_on():
    run = Run("a", "topk", "k", 3, {"aux_loss_coefficient": 1.0, "dtype": "float32"})
    same = replace(run, value=3.0, settings=dict(reversed(run.settings.items())))
    keys = [key_of(identity("s", 0, r)) for r in (run, same)]
    assert keys[0] == keys[1]
    changes = [
        {"label": "b"},
        {"architecture": "batchtopk"},
        {"value": 4},
        {"hyperparameter": "d_sae"},
        {"settings": {}},
    ]
    others = [("s", 0, replace(run, **change)) for change in changes] + [("t", 0, run), ("s", 1, run)]
    assert len({*keys, *(key_of(identity(*other)) for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training": {"steps": 6}}, "training.steps is 5 there and 6 here"),
        ({"worlds": {"flat": {"width": 3}}}, r"worlds.flat.width is 2 there and 3 here"),
        ({"more": 1}, r'more is "\(not given\)" there and 1 here'),
    ],
)
def test_another_sweep_is_refused_in_one_line(tmp_path, changed, message):
    ResultFolder(tmp_path, SETTINGS, GROWING)
    with pytest.raises(ValueError, match=message) as error:
        ResultFolder(tmp_path, {**SETTINGS, **changed}, GROWING)
    assert "\n" not in str(error.value)


def test_what_may_not_grow_is_refused(tmp_path):
    ResultFolder(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r'arms is \["a", "b"\] there and \["a"\] here'):
        ResultFolder(tmp_path, {**SETTINGS, "arms": ["a"]})


def test_a_sweep_may_grow(tmp_path):
    ResultFolder(tmp_path, SETTINGS, GROWING)
    ResultFolder(tmp_path, {**SETTINGS, "arms": ["c"], "worlds": {"round": {"width": 9}}}, GROWING)
    ResultFolder(tmp_path, SETTINGS, GROWING)
    # What was defined once stays defined.
    with pytest.raises(ValueError, match=r"worlds.round.width is 9 there and 8 here"):
        ResultFolder(tmp_path, {**SETTINGS, "worlds": {"round": {"width": 8}}}, GROWING)


def test_a_folder_of_an_older_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"format": 2, **SETTINGS}))
    with pytest.raises(ValueError, match="written by another version of this package") as error:
        ResultFolder(tmp_path, SETTINGS)
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FileExistsError, match="not the folder of a sweep"):
            ResultFolder(path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_file_is_named(tmp_path):
    folder = ResultFolder(tmp_path, SETTINGS)
    folder.write("a", [])
    (tmp_path / "runs" / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is damaged .*remove it"):
        folder.finished()


def test_a_write_that_fails_leaves_nothing(tmp_path):
    folder = ResultFolder(tmp_path, SETTINGS)
    with pytest.raises(TypeError):
        folder.write("a", [{"l0_mean": object()}])
    assert json.loads((tmp_path / "settings.json").read_text())["sweep"] == "x"
    assert list((tmp_path / "runs").iterdir()) == []
