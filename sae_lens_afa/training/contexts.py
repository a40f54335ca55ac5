"""Contexts of one length from documents, as SAELens packs them, with the place in the text from which to go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Beginning of the next context: the row of the data set, and how many of its tokens are used up."""

    row: int = 0
    offset: int = 0


def packed_contexts(
    documents: Iterable[Tensor], context_size: int, *, begin: int | None, separator: int | None, place: Place
) -> Iterator[tuple[Tensor, Place]]:
    """Yield contexts of `context_size` tokens [context_size], each with the place where the next one begins.

    They are those of SAELens' `concat_and_batch_sequences`, whose generator cannot say where it is. A context that is
    complete leaves nothing over but the rest of its last document, so that a place in the text is all there is to keep.

    Args:
        documents: Tokens of each row, int64 [tokens], from row `place.row` on.
        context_size: Tokens of a context.
        begin: Token with which a context begins, unless its first document does; None for none.
        separator: Token before every later document of a context, unless that begins with it; None for none.
        place: Where to begin.

    Example:
        >>> import torch
        >>> from sae_lens_afa.training.contexts import Place, packed_contexts
        >>> documents = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])]
        >>> for context, after in packed_contexts(documents, 4, begin=0, separator=9, place=Place()):
        ...     print(context.tolist(), tuple(after))
        [0, 1, 2, 3] (1, 0)
        [0, 4, 5, 6] (2, 0)
    """
    parts: list[Tensor] = []
    length, offset = 0, place.offset
    for row, document in enumerate(documents, place.row):
        while offset < len(document):
            first = begin if length == 0 else separator
            if first is not None and document[offset] != first:
                parts.append(document.new_tensor([first]))
                length += 1
            taken = document[offset : offset + context_size - length]
            parts.append(taken)
            length, offset = length + len(taken), offset + len(taken)
            if length == context_size:
                yield torch.cat(parts), Place(row, offset) if offset < len(document) else Place(row + 1)
                parts, length = [], 0
        offset = 0
