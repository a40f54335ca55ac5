"""The tokens that a page shows, numbered anew, with their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Vocabulary:
    """Texts of the token ids that occur.

    Args:
        tokenizer: The model's; None shows ids as numbers.
        ids: Token ids, of any shape.

    Attributes:
        texts: Texts of the ids that occur, ascending.
    """

    def __init__(self, tokenizer: Any, *ids: NDArray[Any]) -> None:
        self._ids = np.unique(np.concatenate([each.ravel() for each in ids]))
        self.texts = [_text(tokenizer, int(i)) for i in self._ids]

    def numbers(self, ids: NDArray[Any]) -> NDArray[np.uint32]:
        """Return for each id the number of its text."""
        return np.searchsorted(self._ids, ids).astype(np.uint32)


def _text(tokenizer: Any, token_id: int) -> str:
    """Return a token as it stands in a text: with the blank before it that some tokenizers leave out alone."""
    if tokenizer is None:
        return f"#{token_id}"
    text = tokenizer.decode([token_id])
    piece = tokenizer.convert_ids_to_tokens(token_id)
    return f" {text}" if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ") else text
