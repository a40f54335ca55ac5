"""Activations from a .safetensors file, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

_TENSOR = "activations"
_ROWS = 65_536


def read_activations(path: str | Path, *, what: str = "activations", rows: int = _ROWS) -> Iterator[Tensor]:
    """Return the activations in a .safetensors file, in batches.

    Args:
        path: A file with one tensor, or one of the name "activations": [tokens, d_in] or [tokens, heads, d_head].
        what: Name of the file in messages.
        rows: About how many rows of [d_in] or [d_head] to read at a time.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, or it does not say which tensor is meant.

    Example:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> from sae_lens_afa.loading.activations import read_activations
        >>> save_file({"activations": torch.randn(100, 8)}, "activations.safetensors")
        >>> [len(batch) for batch in read_activations("activations.safetensors", rows=64)]
        [64, 36]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path} is not a file; give a .safetensors file.")
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{what} {path} is not a whole .safetensors file ({error}).") from error
    if len(names) != 1 and _TENSOR not in names:
        raise ValueError(
            f"{what} {path} must hold one tensor, or one of the name {_TENSOR!r}; it holds"
            f" {', '.join(names) or 'none'}."
        )
    return _batches(path, names[0] if len(names) == 1 else _TENSOR, rows)


def _batches(path: Path, name: str, rows: int) -> Iterator[Tensor]:
    with safe_open(path, "pt") as file:
        tensor: Any = file.get_slice(name)
        shape: list[int] = tensor.get_shape()
        size = max(1, rows // (shape[1] if len(shape) > 2 else 1))
        for start in range(0, shape[0] if shape else 0, size):
            yield tensor[start : start + size]
