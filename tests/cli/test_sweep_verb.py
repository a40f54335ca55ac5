"""`sae-lens-afa sweep`: how it ends when it is stopped; what it runs is tested with each sweep."""

from __future__ import annotations

import pytest


def test_a_sweep_that_is_stopped_says_how_to_go_on(tmp_path, monkeypatch, run):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_afa.experiments.run_sweep", stop)
    done = run("sweep", "ground-truth", "--preset", "tiny", "--output", "out")
    assert done.code == 130
    assert done.stderr.strip() == "stopped; finished runs are kept in out: the same command goes on"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ground-truth", "--preset", "slow"], "slow"),
        (["ground-truth", "--grid", "topk"], "topk"),
        (["activations", "--activations", "none.safetensors", "--test", "none.safetensors"], "none.safetensors"),
    ],
)
def test_a_wrong_sweep_is_one_line_and_leaves_nothing_behind(tmp_path, args, message, run):
    done = run("sweep", *args)
    assert done.code == 1
    assert message in done.error
    assert not any(tmp_path.iterdir())
