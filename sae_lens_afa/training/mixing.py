"""The mixing buffer of SAELens' store, token for token, with a state that can be kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override


class Mixed(NamedTuple):
    """Activations in a buffer: those that go out next, in their order, and those that stay to be mixed.

    Attributes:
        serving: Tokens [tokens, d_in] of whole batches.
        waiting: Tokens [tokens, d_in]; None before the first.
    """

    serving: Tensor | None = None
    waiting: Tensor | None = None

    def copied(self) -> Self:
        """Return tensors that hold these tokens and no more; a part of a tensor is saved with the whole of it."""
        return type(self)(*(None if part is None else part.clone() for part in self))


class MixingBuffer(Iterator[Tensor]):
    """Batches [batch_size, d_in] of shuffled activations: SAELens' `mixing_buffer`, token for token.

    New activations join those that wait until there are `buffer_size`; all are shuffled, and what is above the part
    that stays goes out in batches.

    Args:
        buffer_size: Tokens that are mixed.
        batch_size: Tokens of a batch, at most `buffer_size`.
        source: New activations [tokens, d_in], without an end.
        mix_fraction: Part of the buffer that stays; 0: nothing is shuffled.
        generator: Draws the permutations; None: torch's own, as SAELens does.
        content: What the buffer holds at first.

    Attributes:
        content: What it holds now.

    Example:
        >>> import itertools, torch
        >>> from sae_lens_afa.training.mixing import MixingBuffer
        >>> source = (torch.full((3, 2), float(i)) for i in itertools.count())
        >>> next(MixingBuffer(4, 2, source, mix_fraction=0.0)).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        buffer_size: int,
        batch_size: int,
        source: Iterator[Tensor],
        *,
        mix_fraction: float = 0.5,
        generator: torch.Generator | None = None,
        content: Mixed = Mixed(),  # noqa: B008  (it is immutable)
    ) -> None:
        self._size, self._batch = buffer_size, batch_size
        self._stays = int(buffer_size * mix_fraction)
        self._shuffles = mix_fraction > 0
        self._source, self._generator = source, generator
        self.content = content

    @override
    @torch.no_grad()
    def __next__(self) -> Tensor:
        serving, waiting = self.content
        if serving is None or len(serving) == 0:
            serving, waiting = self._refilled(waiting)
        self.content = Mixed(serving[self._batch :], waiting)
        return serving[: self._batch]

    def _refilled(self, waiting: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take in activations until there are enough, and return what goes out and what stays."""
        while True:
            new = next(self._source)
            waiting = new if waiting is None else torch.cat([waiting, new])
            if len(waiting) >= self._size:
                break
        if self._shuffles:
            waiting = waiting[torch.randperm(len(waiting), generator=self._generator)]
        out = max(1, (len(waiting) - self._stays) // self._batch) * self._batch
        return waiting[:out], waiting[out:]
