"""The tokens that stand for each latent: a bounded number per latent, kept by a key, from a stream of any length."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lens_afa.feature_page.active_entries import ActiveEntries

# Tokens that are shown before an example and after it.
BEFORE, AFTER = 16, 8


class ExampleKeeper:
    """For each latent, the examples with the largest keys: its activations, or random numbers for a fair sample.

    Of examples with equal keys, as a latent's at the first token of every prompt, the first of the text are kept.

    Args:
        d_sae: Number of latents.
        per_latent: Examples that are kept of each.

    Attributes:
        place: Places of the examples in the text, [d_sae, per_latent], the largest key first; -1 where there is none.
        value: The latent's activations there.
        window: Its activations around them, [d_sae, per_latent, BEFORE + 1 + AFTER].
    """

    def __init__(self, d_sae: int, per_latent: int) -> None:
        self.place = torch.full((d_sae, per_latent), -1)
        self.value = torch.zeros(d_sae, per_latent)
        self.window = torch.zeros(d_sae, per_latent, BEFORE + 1 + AFTER, dtype=torch.bfloat16)
        self._key = torch.full((d_sae, per_latent), -torch.inf)

    def add(self, candidates: ActiveEntries, key: Tensor, entries: ActiveEntries, n_before: int) -> None:
        """Look at candidates, and keep those whose keys are among the largest of their latents.

        Args:
            candidates: Some of the entries.
            key: A key for each, [entries].
            entries: All active features of these prompts, for what is around a candidate.
            n_before: Places of the text before these prompts.
        """
        per_latent = self._key.shape[1]
        better = key > self._key[:, -1][candidates.latent]
        candidates, key = candidates[better], key[better]
        order = key.argsort(descending=True, stable=True)
        order = order[candidates.latent[order].argsort(stable=True)]
        latents, row, count = candidates.latent[order].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(order)) - (count.cumsum(0) - count)[row]
        order, row, rank = (each[rank < per_latent] for each in (order, row, rank))
        chosen = candidates[order]

        def beside(kept: Tensor, new: Tensor, fill: float) -> Tensor:
            """Return what is kept of these latents, and beside it what is new."""
            padded = kept.new_full((len(latents), *kept.shape[1:]), fill)
            padded[row, rank] = new.to(kept.dtype)
            return torch.cat([kept[latents], padded], 1)

        both_keys = beside(self._key, key[order], -torch.inf)
        best = both_keys.argsort(dim=1, descending=True, stable=True)[:, :per_latent]
        self._key[latents] = _in_order(both_keys, best)
        self.place[latents] = _in_order(beside(self.place, chosen.place + n_before, -1), best)
        self.value[latents] = _in_order(beside(self.value, chosen.value, 0), best)
        windows = entries.windows(chosen.latent, chosen.place, BEFORE, AFTER)
        self.window[latents] = _in_order(beside(self.window, windows, 0), best)

    def merge(self, other: ExampleKeeper) -> None:
        """Look at what another rank has kept of the same text."""
        place, key = torch.cat([self.place, other.place], 1), torch.cat([self._key, other._key], 1)
        by_place = place.argsort(dim=1, stable=True)
        by_key = _in_order(key, by_place).argsort(dim=1, descending=True, stable=True)
        best = _in_order(by_place, by_key)[:, : self.place.shape[1]]
        value, window = torch.cat([self.value, other.value], 1), torch.cat([self.window, other.window], 1)
        self.place, self._key, self.value, self.window = (_in_order(x, best) for x in (place, key, value, window))

    def sort_by_value(self) -> None:
        """Put the examples of each latent in the order of their activations, the largest in size first."""
        order = self.value.abs().masked_fill(self.place < 0, -torch.inf).argsort(dim=1, descending=True, stable=True)
        self.place, self.value, self._key, self.window = (
            _in_order(each, order) for each in (self.place, self.value, self._key, self.window)
        )


def _in_order(of_latents: Tensor, order: Tensor) -> Tensor:
    """Return entries [latents, n, ...] of each latent in an order, [latents, m]."""
    trailing = of_latents.shape[2:]
    return of_latents.gather(1, order.view(*order.shape, *(1,) * len(trailing)).expand(-1, -1, *trailing))
