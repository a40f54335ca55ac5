"""Activations from a .safetensors file: checked, and as an endless stream of batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sae_lens_afa.experiments.training import own_generator
from sae_lens_afa.loading.activations import read_activations as read_blocks


def read_activations(path: str | Path, field: str) -> Tensor:
    """The tensor [tokens, d_in] of a file (the only one, or that called "activations"), in float32.

    Args:
        path: The file.
        field: What the file is called in messages.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not safetensors, not one tensor, another shape, a value that is not finite.
    """
    path = Path(path)
    activations = torch.cat([part.float() for part in read_blocks(path, what=field)])
    if activations.ndim != 2 or activations.numel() == 0:
        raise ValueError(f"{field} {path} has shape {list(activations.shape)}, expected [tokens, d_in].")
    if not (finite := activations.isfinite().all(1)).all():
        raise ValueError(
            f"{field} {path} has {int((~finite).sum())} tokens with NaN or infinity, the first at"
            f" {int((~finite).nonzero()[0])}; leave them out."
        )
    return activations.float()


def shuffled_batches(activations: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [batch_size, d_in]: each epoch in another order, its last incomplete batch left out.

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
