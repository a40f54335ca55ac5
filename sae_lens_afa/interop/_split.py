"""A stream of activations, split once into what calibrates and what judges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.evals.sae_space import SAESpace

# One block of tokens in so many is held out; whole blocks, since neighbours in a text are alike.
_BLOCK, _EVERY = 128, 5
FIRST_SPLIT = _BLOCK * _EVERY
MIN_TOKENS = 64
MAX_HELD_OUT = 16_384


class ActivationSplit:
    """Activations, read once; every fifth block of 128 tokens is held out, up to 16,384 tokens of them.

    With fewer than 640 tokens nothing is held out: all of them calibrate, and judge too.

    Args:
        space: Shape that activations have.
        activations: Raw hook-point values [..., d_in] (hook_z: [..., heads, d_head]), or an iterable of such batches.
        batch_size: Most tokens of a batch that is given on.

    Attributes:
        n_calibration: Tokens given on so far.
        held_out: True if the judging tokens are others than those that calibrate.
    """

    def __init__(self, space: SAESpace, activations: Tensor | Iterable[Tensor], batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        batches: Iterable[Tensor] = [activations] if isinstance(activations, Tensor) else activations
        self._rows = chain.from_iterable(space.rows(batch).split(batch_size) for batch in batches)
        self._batch_size, self._read = batch_size, 0
        self._judging: list[Tensor] = []
        self._n_judging = self.n_calibration = 0
        self.held_out = True

    def calibration(self) -> Iterator[Float[Tensor, "tokens d_in"]]:
        """Return the batches to calibrate on; when they are through, `judging` is known.

        Raises:
            TypeError: a batch is not a floating-point tensor.
            ValueError: a shape that does not fit, a NaN or an infinity, or too few tokens.
        """
        first: list[Tensor] = []
        while sum(map(len, first)) < FIRST_SPLIT and (rows := next(self._rows, None)) is not None:
            first.append(self._finite(rows))
        if (n := sum(map(len, first))) < FIRST_SPLIT:
            if n < MIN_TOKENS:
                raise ValueError(
                    f"too few activations: {n} tokens; a calibration needs at least {MIN_TOKENS}, better 16,384."
                )
            self._judging, self.n_calibration, self.held_out = first, n, False
            yield from first
            return
        place = 0
        for rows in chain(first, map(self._finite, self._rows)):
            index = torch.arange(place, place + len(rows), device=rows.device)
            place += len(rows)
            mask = index // _BLOCK % _EVERY == _EVERY - 1
            mask &= mask.cumsum(0) <= MAX_HELD_OUT - self._n_judging
            # Indexing copies: a kept row does not keep its batch in memory.
            judging, calibrating = rows[mask], rows[~mask]
            self._judging.append(judging)
            self._n_judging += len(judging)
            self.n_calibration += len(calibrating)
            if len(calibrating):
                yield calibrating

    def judging(self) -> list[Float[Tensor, "tokens d_in"]]:
        """Return the batches to judge on."""
        return list(torch.cat(self._judging).split(self._batch_size))

    def _finite(self, rows: Tensor) -> Tensor:
        bad = (~rows.isfinite().all(-1)).nonzero()
        if len(bad):
            raise ValueError(
                f"activations: token {self._read + int(bad[0])} holds a NaN or an infinity; leave such tokens out."
            )
        self._read += len(rows)
        return rows
