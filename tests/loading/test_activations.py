"""Activations from a file, in batches."""

import pytest
import torch
from safetensors.torch import save_file

from sae_lens_afa.loading.activations import read_activations


@pytest.mark.parametrize("shape", [(10, 8), (10, 2, 4)])
def test_batches_of_a_file_are_its_tensor(tmp_path, shape):
    x = torch.randn(shape)
    save_file({"x": x}, tmp_path / "x.safetensors")
    batches = list(read_activations(tmp_path / "x.safetensors", rows=6))
    assert [len(batch) for batch in batches] == ([6, 4] if len(shape) == 2 else [3, 3, 3, 1])
    assert torch.equal(torch.cat(batches), x)
