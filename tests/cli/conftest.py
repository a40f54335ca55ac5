"""The command, called in this process, and a text to train on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import Done

from sae_lens_afa.cli import main
from sae_lens_afa.demo import load_text


@pytest.fixture
def run(tmp_path, monkeypatch, capfd) -> Callable[..., Done]:
    """Call the command with these arguments, in `tmp_path` as the working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sae-lens-afa", *args])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A dataset folder, as `datasets.load_dataset` reads it."""
    folder = tmp_path_factory.mktemp("text")
    rows = (json.dumps({"text": chapter}) for chapter in load_text().train[:100])
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder
