"""Activations from a .safetensors file: checked, and as an endless stream of batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.experiments.side_by_side import own_generator
from sae_lens_afa.loading.activations import read_activations


def read_matrix(path: Path, parameter: str) -> Float[Tensor, "tokens d_in"]:
    """Return the tensor of a file (the only one, or that called "activations"), in float32.

    Args:
        path: The file.
        parameter: Name of the parameter that it was given as, for messages.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not safetensors, not one tensor, another shape, a value that is not finite.
    """
    parts = [part.float() for part in read_activations(path, what=parameter)]
    activations = torch.cat(parts) if parts else torch.empty(0)
    if activations.ndim != 2 or activations.numel() == 0:
        raise ValueError(f"{parameter} {path} has shape {list(activations.shape)}, expected [tokens, d_in].")
    if not (finite := activations.isfinite().all(1)).all():
        raise ValueError(
            f"{parameter} {path} has {int((~finite).sum())} tokens with NaN or infinity, the first at"
            f" {int((~finite).nonzero()[0])}; leave them out."
        )
    return activations


def shuffled_batches(
    activations: Float[Tensor, "tokens d_in"], batch_size: int, seed: int
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yield batches without end: each epoch in another order, its last incomplete batch left out.

    Raises:
        ValueError: fewer tokens than a batch.
    """
    if len(activations) < batch_size:
        raise ValueError(f"activations: {len(activations)} tokens are fewer than a batch of {batch_size}.")
    generator = own_generator("data", seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for rows in order.split(batch_size):
            if len(rows) == batch_size:
                yield activations[rows]
