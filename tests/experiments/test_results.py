"""The folder of a sweep: whole files, one owner."""

from __future__ import annotations

import json
import math

import pytest

from sae_lens_afa.experiments.results import ResultFolder

SETTINGS = {"sweep": "x", "training": {"steps": 5}, "arms": ["a", "b"]}


def test_groups_are_kept_with_their_versions_and_nan_is_null(tmp_path):
    folder = ResultFolder(tmp_path / "out", SETTINGS)
    folder.write("b", [{"l0": math.nan, "seed": 1, "status": "ok"}])
    again = ResultFolder(tmp_path / "out", SETTINGS)
    assert again.finished("b")
    assert not again.finished("a")
    assert again.rows(["a", "b"]) == [{"l0": None, "seed": 1, "status": "ok"}]
    (made_with,) = again.versions(["a", "b"])
    assert {"python", "sae-lens-afa", "sae-lens", "torch"} <= set(made_with)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["b.json", "runs", "settings.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training": {"steps": 6}}, "training.steps is 5 there and 6 here"),
        ({"arms": ["a"]}, r'arms is \["a", "b"\] there and \["a"\] here'),
        ({"more": 1}, r'more is "\(not given\)" there and 1 here'),
    ],
)
def test_another_sweep_is_refused_in_one_line(tmp_path, changed, message):
    ResultFolder(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=message) as error:
        ResultFolder(tmp_path, {**SETTINGS, **changed})
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
        folder.rows(["a"])


def test_a_write_that_fails_leaves_nothing(tmp_path):
    folder = ResultFolder(tmp_path, SETTINGS)
    with pytest.raises(TypeError):
        folder.write("a", [{"l0": object()}])
    assert json.loads((tmp_path / "settings.json").read_text())["sweep"] == "x"
    assert list((tmp_path / "runs").iterdir()) == []
