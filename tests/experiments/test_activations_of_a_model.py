"""The example that writes activations of a model for a sweep, on the bundled model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_lens_afa.experiments import activations_sweep

EXAMPLE = Path(__file__).parents[2] / "examples" / "activations_of_a_model.py"
SMALL = ("--tokens", "3000", "--test-tokens", "500", "--context", "32", "--output", "files")


def of_files(client):
    files = (client.cwd / "files" / f"{name}.safetensors" for name in ("train", "test"))
    sweep = activations_sweep(*files, preset="tiny", raw=True)
    sweep.check()
    return sweep.data


@pytest.mark.slow
def test_a_sweep_takes_the_files_as_they_are(client):
    done = client.program(EXAMPLE, *SMALL)
    assert "sweep activations --activations files/train.safetensors --test files/test.safetensors --raw" in done.output
    train, test, _ = of_files(client)
    assert (len(train), len(test)) == (97 * 31, 17 * 31)  # whole contexts, without their first token
    assert train.norm(dim=-1).mean().item() == pytest.approx(192**0.5, rel=1e-5)
    # float32 sums of 3,007 values of about 1.
    torch.testing.assert_close(train.mean(0), torch.zeros(192), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_outliers_are_left_out_and_tokens_whitened(client):
    flags = ("--outlier-norm-multiple", "1.2", "--whiten", "--hook", "blocks.1.attn.hook_z")
    assert "tokens left out" in client.program(EXAMPLE, *SMALL, *flags).output
    train = of_files(client).train
    assert 1000 < len(train) < 97 * 31
    covariance = train.T @ train / len(train)
    # One number scales all; directions of hardly any variance are not blown up.
    assert torch.allclose(covariance, covariance[0, 0] * torch.eye(192), atol=0.02 * covariance[0, 0].item())


@pytest.mark.slow
def test_a_text_that_is_too_short_is_refused_in_one_line(client):
    (client.cwd / "short.txt").write_text("In the beginning.")
    done = client.program(EXAMPLE, *SMALL, "--dataset", "short.txt", status=1)
    assert done.last_line.startswith("error: the text has ")
    assert "Traceback" not in done.output
