"""The tokens of a text that an SAE is judged on: like those of its training, unless the caller says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from sae_lens.util import get_special_token_ids
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


class JudgedTokens:
    """The tokens of a text that one SAE is judged on, counted as they are read.

    Args:
        sae: The SAE; its metadata names positions and special tokens.
        store: The store that the text is read from.
        model: The model, for its tokenizer.
        tokens: Tokens to read, before special ones are left out.
        positions: As for `run_afa_evals`.
        exclude_special_tokens: As for `run_afa_evals`.

    Attributes:
        excluded_ids: Token ids that are left out.
        n_read: Tokens read so far, special ones among them.
        n_judged: Those of them that are judged.

    Raises:
        ValueError: no position of a prompt is left, or special tokens without a tokenizer to say which they are.
    """

    def __init__(
        self,
        sae: SAE[Any],
        store: ActivationsStore,
        model: HookedRootModule,
        tokens: int,
        positions: Sequence[int] | None,
        exclude_special_tokens: bool | Sequence[int] | None,
    ) -> None:
        metadata: Any = sae.cfg.metadata
        trained_without = metadata.exclude_special_tokens or False
        self.excluded_ids = excluded_ids(
            model, trained_without if exclude_special_tokens is None else exclude_special_tokens
        )
        self._excluded = torch.tensor(self.excluded_ids, dtype=torch.long)
        self._at_positions = _position_mask(store.context_size, metadata.seqpos_slice or store.seqpos_slice, positions)
        self._tokens = tokens
        self.n_read = self.n_judged = 0

    @property
    def n_missing_prompts(self) -> int:
        """Prompts still to be read until there are as many tokens as were asked for."""
        return -(-max(0, self._tokens - self.n_read) // int(self._at_positions.sum()))

    def take(self, batch: Int[Tensor, "prompts context"]) -> Bool[Tensor, "prompts context"]:
        """Read the next prompts; return the mask of the tokens to judge, on the CPU."""
        mask = self._at_positions.repeat(len(batch), 1)
        mask &= mask.flatten().cumsum(0).view_as(mask) <= self._tokens - self.n_read
        self.n_read += int(mask.sum())
        mask &= ~torch.isin(batch.cpu(), self._excluded)
        self.n_judged += int(mask.sum())
        return mask

    def check_judged(self) -> None:
        """Refuse to go on without any token.

        Raises:
            ValueError: saying why there is none.
        """
        if self.n_read == 0:
            raise ValueError(
                f"no tokens to judge: the text has not one prompt of {len(self._at_positions)} tokens"
                " (context_size): give a longer text, or a smaller context."
            )
        if self.n_judged == 0:
            raise ValueError(f"no tokens to judge: {self.n_read} were read, and all are special tokens.")


def excluded_ids(model: HookedRootModule, exclude: bool | Sequence[int]) -> list[int]:
    """Return the token ids to leave out: given ones, the special ones of the model's tokenizer (True), or none.

    Raises:
        ValueError: the model has no tokenizer to say which are special.
    """
    if exclude is False:
        return []
    if exclude is True:
        tokenizer: Any = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("exclude_special_tokens=True needs a tokenizer, the model has none; give the token ids.")
        exclude = get_special_token_ids(tokenizer)
    return list(exclude)


def _position_mask(
    width: int, seqpos_slice: Sequence[int | None], positions: Sequence[int] | None
) -> Bool[Tensor, " context"]:
    """Return the positions of a prompt that are judged: given ones, or those of the slice."""
    mask = torch.zeros(width, dtype=torch.bool)
    if positions is None:
        mask[slice(*seqpos_slice)] = True
        if not mask.any():
            raise ValueError(
                f"no tokens to judge: seqpos_slice={tuple(seqpos_slice)}, on which the SAE was trained, has no position"
                f" of a prompt of {width} tokens (context_size): give positions, or longer prompts."
            )
        return mask
    if not positions or any(not -width <= position < width for position in positions):
        raise ValueError(f"positions must be within -{width} to {width - 1} (context_size), got {list(positions)}.")
    mask[torch.tensor(list(positions))] = True
    return mask
