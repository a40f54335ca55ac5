"""A store of activations that ranks fill together: rank 0 reads the text, each runs the model on its share of it.

All ranks then hold the same activations in the same order, which are those of a single process. They are little beside
the gradients: d_in numbers for each token, where a step exchanges 2 d_in d_sae.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.distributed.ranks import Ranks
from sae_lens_afa.training.resumable_store import ResumableStore


class SharedStore(ResumableStore):
    """A `ResumableStore` whose batches all ranks make together and all have."""

    ranks: Ranks
    _together = False
    _alone = False

    @contextmanager
    def alone(self) -> Generator[None]:
        """Make batches within without the other ranks."""
        before, self._alone = self._alone, True
        try:
            yield
        finally:
            self._alone = before

    @override
    def get_raw_llm_batch(self, raise_on_epoch_end: bool = False) -> tuple[Tensor, Tensor | None]:
        # Evaluations ask for tokens and activations too, and those are rank 0's own.
        self._together = self.ranks.size > 1 and not self._alone
        try:
            return super().get_raw_llm_batch(raise_on_epoch_end)
        finally:
            self._together = False

    @override
    def get_batch_tokens(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False, move_to_model_device: bool = True
    ) -> Tensor:
        if not self._together:
            return super().get_batch_tokens(batch_size, raise_at_epoch_end, move_to_model_device)
        n = batch_size or self.store_batch_size_prompts
        # The first entry says whether an epoch has ended instead.
        said, tokens = torch.zeros(1 + n * self.context_size, dtype=torch.int64), None
        if self.ranks.is_first:
            try:
                tokens = super().get_batch_tokens(n, raise_at_epoch_end, move_to_model_device)
            except StopIteration:
                said[0] = 1
            else:
                said[1:] = tokens.flatten()
        said = self.ranks.from_first(said)
        if said[0] == 1:
            raise StopIteration
        device = self.model_device if move_to_model_device else self.device
        return said[1:].view(n, self.context_size).to(device) if tokens is None else tokens

    @property
    def model_device(self) -> torch.device:
        """The device of the language model."""
        return next(self.model.parameters()).device

    @override
    def get_activations(self, batch_tokens: Tensor) -> Tensor:
        if not self._together:
            return super().get_activations(batch_tokens)
        n = len(batch_tokens)
        own = batch_tokens[self.ranks.share_of(n)]
        # All shares are of one length; what stands in for missing prompts is dropped.
        missing = self.ranks.longest_share_of(n) - len(own)
        own = torch.cat([own, batch_tokens[:1].expand(missing, -1)])
        return self.ranks.gathered(super().get_activations(own))[:n]

    @override
    def _load_raw_llm_batch_from_cached(self, raise_on_epoch_end: bool) -> tuple[Tensor, Tensor | None]:
        """Read this rank's rows of a batch from the disk, and get the others' from them."""
        if not self._together or self.cached_activation_dataset is None:
            return super()._load_raw_llm_batch_from_cached(raise_on_epoch_end)
        n, first = self.store_batch_size_prompts, self.current_row_idx
        if first > len(self.cached_activation_dataset) - n:
            first = self.current_row_idx = 0
            if raise_on_epoch_end:
                raise StopIteration
        share = n // self.ranks.size
        self.current_row_idx, self.store_batch_size_prompts = first + self.ranks.rank * share, share
        try:
            acts, token_ids = super()._load_raw_llm_batch_from_cached(False)
        finally:
            self.current_row_idx, self.store_batch_size_prompts = first + n, n
        return self.ranks.gathered(acts), None if token_ids is None else self.ranks.gathered(token_ids)
