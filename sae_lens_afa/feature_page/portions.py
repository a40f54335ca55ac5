"""Rows in portions whose products with something wide stay small."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Elements of a product that is made at a time.
ELEMENTS = 2**24


def portions(rows: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the rows some at a time, each portion with the number of rows before it.

    Args:
        rows: Shape [rows, ...].
        width: Elements that will be made of each row.
    """
    size = max(1, ELEMENTS // width)
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
