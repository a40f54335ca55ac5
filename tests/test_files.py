"""Files and folders appear whole, or not at all."""

from __future__ import annotations

import pytest

from sae_lens_afa.files import check_output_folder, check_replaceable, nearest_folder, write_folder, write_into


def fill(**contents):
    """Return a writer of files."""

    def write(folder):
        for name, content in contents.items():
            (folder / name).write_text(content)

    return write


def fail(folder):
    (folder / "a").write_text("half")
    raise OSError("disk full")


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def existing(tmp_path):
    folder = tmp_path / "parent" / "out"
    folder.mkdir(parents=True)
    fill(a="old", theirs="kept", plot="old")(folder)
    return folder


def test_write_into_replaces_files_and_keeps_others(existing):
    files = write_into(existing, fill(b="new", a="new"), remove=["plot", "never there", "b"])
    assert files == [existing / "a", existing / "b"]
    assert contents(existing) == {"a": "new", "b": "new", "theirs": "kept"}


def test_write_into_makes_the_folder(tmp_path):
    assert write_into(tmp_path / "x" / "out", fill(a="new")) == [tmp_path / "x" / "out" / "a"]
    assert contents(tmp_path / "x" / "out") == {"a": "new"}


def test_write_folder_replaces_the_whole(existing):
    write_folder(existing, fill(b="new"))
    assert contents(existing) == {"b": "new"}


@pytest.mark.parametrize("writer", [write_folder, write_into])
def test_a_writer_that_fails_changes_nothing(existing, writer):
    with pytest.raises(OSError, match="disk full"):
        writer(existing, fail)
    assert contents(existing) == {"a": "old", "theirs": "kept", "plot": "old"}
    assert [path.name for path in existing.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("writer", [write_folder, write_into])
def test_a_link_stays_one(existing, writer, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(existing)
    writer(link, fill(a="new"))
    assert link.is_symlink()
    assert contents(existing)["a"] == "new"


def test_output_folders_are_checked_before_the_work(existing):
    check_output_folder(existing.parent / "new" / "er", overwrite=False)
    check_output_folder(existing, overwrite=True)
    with pytest.raises(FileExistsError, match="out exists; pass overwrite=True to replace it"):
        check_output_folder(existing, overwrite=False)
    with pytest.raises(FileExistsError, match="is not a folder"):
        check_output_folder(existing / "a", overwrite=True)
    with pytest.raises(NotADirectoryError, match="cannot be written"):
        check_output_folder(existing / "a" / "b", overwrite=True)
    with pytest.raises(FileExistsError, match="is not the folder of an SAE"):
        check_replaceable(existing, overwrite=True)
    fill(**{"cfg.json": "{}"})(existing)
    check_replaceable(existing, overwrite=True)


def test_the_nearest_folder_is_the_path_itself_if_it_exists(existing):
    assert nearest_folder(existing) == existing
    assert nearest_folder(existing / "x" / "y") == existing
