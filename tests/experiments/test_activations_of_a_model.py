"""The example that writes activations of a model for a sweep, on the bundled model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_lens_afa.experiments import activations_sweep

EXAMPLE = Path(__file__).parents[2] / "examples" / "activations_of_a_model.py"
SMALL = ("--tokens", "3000", "--test-tokens", "500", "--context", "32")


def written(folder, *flags):
    command = [sys.executable, str(EXAMPLE), *SMALL, "--output", "files", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def of_files(folder):
    files = (folder / "files" / f"{name}.safetensors" for name in ("train", "test"))
    sweep = activations_sweep(*files, preset="tiny", raw=True)
    sweep.check()
    return sweep.data


@pytest.mark.slow
def test_a_sweep_takes_the_files_as_they_are(tmp_path):
    done = written(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sweep activations --activations files/train.safetensors --test files/test.safetensors --raw" in done.stdout
    train, test, _ = of_files(tmp_path)
    assert (len(train), len(test)) == (97 * 31, 17 * 31)  # whole contexts, without their first token
    assert train.norm(dim=-1).mean().item() == pytest.approx(192**0.5, rel=1e-5)
    # float32 sums of 3,007 values of about 1.
    torch.testing.assert_close(train.mean(0), torch.zeros(192), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_outliers_are_left_out_and_tokens_whitened(tmp_path):
    done = written(tmp_path, "--outlier-norm-multiple", "1.2", "--whiten", "--hook", "blocks.1.attn.hook_z")
    assert done.returncode == 0, done.stderr
    assert "tokens left out" in done.stdout
    train = of_files(tmp_path).train
    assert 1000 < len(train) < 97 * 31
    covariance = train.T @ train / len(train)
    # One number scales all; directions of hardly any variance are not blown up.
    assert torch.allclose(covariance, covariance[0, 0] * torch.eye(192), atol=0.02 * covariance[0, 0].item())


@pytest.mark.slow
def test_a_text_that_is_too_short_is_refused_in_one_line(tmp_path):
    (tmp_path / "short.txt").write_text("In the beginning.")
    done = written(tmp_path, "--dataset", "short.txt")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: the text has ")
    assert "Traceback" not in done.stderr
