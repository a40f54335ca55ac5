"""`sae-lens-afa saebench` before SAEBench is asked; tests/clients runs it beside SAEBench."""

from __future__ import annotations

import sys

import pytest
from cli_helpers import save_untrained


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to judge: give --sae PATH, or --demo"),
        (["--demo"], "run `sae-lens-afa demo` first"),
        (["--demo", "--model", "gpt2"], "leave out --model and --dataset"),
        (["--sae", "sae", "--tokens", "0"], "--tokens must be at least 1"),
        (["--sae", "sae", "--device", "nonsense"], "--device 'nonsense' cannot be used"),
        (["--sae", "sae"], "SAEBench is not installed here: pip install sae-bench"),
    ],
)
def test_what_cannot_work_is_one_line(run, tmp_path, monkeypatch, args, message):
    monkeypatch.setitem(sys.modules, "sae_bench", None)
    save_untrained(tmp_path / "sae")
    done = run("saebench", "--output", "out", *args)
    assert message in done.error
    assert not (tmp_path / "out").exists()
