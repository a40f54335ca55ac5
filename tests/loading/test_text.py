"""Text and tokens by name: every form gives what SAELens' store reads, and what is wrong is one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from sae_lens_afa.loading.text import load_text_dataset, text_dataset

TEXTS = ["In the beginning God created", "And the earth was\nwithout form", "And God said"]
TOKENS = [[1, 2, 3], [4, 5, 6]]


def jsonl(rows: list[dict]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def write(folder: Path, form: str) -> Path:
    rows = [{"text": text} for text in TEXTS]
    if form.endswith(".gz"):
        path = folder / f"data{form}"
        text = jsonl(rows) if "json" in form else "\n\n".join(TEXTS)
        path.write_bytes(gzip.compress(text.encode()))
        return path
    if form in (".txt", ".jsonl"):
        path = folder / f"data{form}"
        path.write_text("\n\n".join(TEXTS) if form == ".txt" else jsonl(rows))
        return path
    if form == ".parquet":
        Dataset.from_list(rows).to_parquet(folder / "data.parquet")
        return folder / "data.parquet"
    if form == "folder":
        (folder / "many" / "deeper").mkdir(parents=True)
        (folder / "many" / ".hidden.jsonl").write_text("not read")
        (folder / "many" / "README.md").write_text("not read")
        (folder / "many" / "a.jsonl").write_text(jsonl(rows[:1]))
        (folder / "many" / "deeper" / "b.jsonl").write_text(jsonl(rows[1:]))
        return folder / "many"
    data = Dataset.from_list(rows)
    kept = {"saved": data, "dict": DatasetDict(train=data, test=data.take(1)), "one part": DatasetDict(all=data)}
    kept[form].save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize(
    "form", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet", "folder", "saved", "dict", "one part"]
)
def test_every_form_gives_the_same_texts(tmp_path, form):
    assert [row["text"] for row in load_text_dataset(str(write(tmp_path, form)))] == TEXTS


@pytest.mark.parametrize("column", ["tokens", "input_ids"])
def test_tokens_are_read_from_files_and_folders(tmp_path, column):
    data = Dataset.from_list([{column: row} for row in TOKENS])
    data.to_json(tmp_path / "tokens.jsonl")
    DatasetDict(train=data).save_to_disk(tmp_path / "saved")
    for name in ("tokens.jsonl", "saved"):
        assert [list(row[column]) for row in load_text_dataset(str(tmp_path / name))] == TOKENS


def test_a_name_that_is_no_path_is_left_to_the_hub():
    for name in ("Skylion007/openwebtext", "wikitext"):
        assert load_text_dataset(name) == name


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "nosuch.txt", r"nosuch\.txt: there is no such file or folder"),
        ({}, "no/such/data", "there is no such file or folder"),
        ({"empty.txt": ""}, "empty.txt", r"empty\.txt holds no text"),
        ({"empty.jsonl": ""}, "empty.jsonl", r"empty\.jsonl holds no text"),
        ({"blank.txt": "\n\n \n\n"}, "blank.txt", r"blank\.txt.* holds no text"),
        ({"blank.jsonl": '{"text": " "}\n{"text": ""}'}, "blank.jsonl", r"blank\.jsonl holds no text"),
        ({"data.bin": "x"}, "data.bin", r"only \.txt, .* files are read"),
        ({"other.jsonl": '{"body": "x"}'}, "other.jsonl", "has the columns body: text must be in 'text'"),
        ({"broken.jsonl": '{"text": "x"\n{"te'}, "broken.jsonl", r"broken\.jsonl cannot be read"),
        ({"broken.parquet": "x"}, "broken.parquet", r"broken\.parquet cannot be read"),
        ({"broken.txt.gz": "x"}, "broken.txt.gz", r"broken\.txt\.gz cannot be read"),
        # The alternatives are those of datasets 3, which refuses to read such files.
        ({"a.json": "[1, 2]"}, "a.json", r"'text' must hold strings, it holds Value\(.*'int64'"),
        (
            {"a.jsonl": '{"text": "x"}\n{"text": 3}'},
            "a.jsonl",
            r"('text' must hold strings, it holds Json|a\.jsonl cannot be read)",
        ),
        (
            {"a/1.jsonl": '{"text": "x"}', "a/2.jsonl": '{"body": "y"}'},
            "a",
            "(its rows have different columns|a cannot be read)",
        ),
        ({"folder/notes.md": "x"}, "folder", "folder has no data: give a file"),
        ({"folder/a.txt": "x", "folder/b.jsonl": "{}"}, "folder", "files of several kinds"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, files, name, message):
    monkeypatch.chdir(tmp_path)
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    with pytest.raises((ValueError, OSError), match=f"^dataset .*{message}") as raised:
        load_text_dataset(name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_parts_without_a_train_are_listed(tmp_path):
    data = Dataset.from_list([{"text": "x"}])
    DatasetDict(a=data, b=data).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="has the parts a, b and no 'train'"):
        load_text_dataset(str(tmp_path / "saved"))


def test_texts_may_have_a_name():
    assert text_dataset(["x"], name="mine").info.dataset_name == "mine"
    assert text_dataset(["x"])["text"][:] == ["x"]
