"""Latents that are active together more than apart, counted on a sample of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sae_lens_afa import over_ranks
from sae_lens_afa.feature_page.active_entries import ActiveEntries

# Tokens of the sample, and pairs of active features in all of them, which bounds the work for dense codes.
_TOKENS, _PAIRS = 16_384, 2**30
# Less often together is chance.
_LEAST_TOGETHER = 3
# Latents whose companions are looked for at a time.
_ROWS = 1024


class Companions:
    """Counts of latents that come together, from a sample of tokens.

    Args:
        d_sae: Number of latents.
        tokens: Tokens of the whole stream.
    """

    def __init__(self, d_sae: int, tokens: int) -> None:
        self._d_sae = d_sae
        self._share = min(1.0, _TOKENS / tokens)
        self._places: list[NDArray[np.int64]] = []
        self._latents: list[NDArray[np.int64]] = []
        self._n_places = self._pairs = 0

    def add(self, entries: ActiveEntries, generator: torch.Generator) -> None:
        """Take some of the tokens of these prompts, which the generator draws, into the sample."""
        taken = torch.rand(entries.n_places, generator=generator) < self._share
        l0 = entries.place.bincount(minlength=entries.n_places)
        taken &= (l0 * taken).square().cumsum(0) <= _PAIRS // over_ranks.n_ranks() - self._pairs
        self._pairs += int((l0 * taken).square().sum())
        entries = entries[taken[entries.place]]
        self._places.append(entries.place.numpy() + self._n_places)
        self._latents.append(entries.latent.numpy())
        self._n_places += entries.n_places

    def merge(self, other: Companions) -> None:
        """Take in the sample of another rank."""
        self._places += [places + self._n_places for places in other._places]
        self._latents += other._latents
        self._n_places += other._n_places
        self._pairs += other._pairs

    def strongest(self, n: int) -> tuple[Int[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
        """Return for each latent the n with the largest share of common tokens; -1 where there are fewer.

        The share is n_both / sqrt(n_one n_other), the cosine of "is active" over tokens.
        """
        place, latent = (np.concatenate([np.empty(0, np.int64), *each]) for each in (self._places, self._latents))
        shape = (self._n_places, self._d_sae)
        active: Any = sparse.csr_matrix((np.ones(len(place), dtype=np.int32), (place, latent)), shape=shape)
        count, with_latent = np.asarray(active.sum(0)).ravel(), active.T.tocsr()
        n = min(n, self._d_sae - 1)
        best, shares = np.full((self._d_sae, n), -1), np.zeros((self._d_sae, n), dtype=np.float32)
        for start in range(0, self._d_sae, _ROWS):
            both = (with_latent[start : start + _ROWS] @ active).tocoo()
            one, other = both.row + start, both.col
            often = (both.data >= _LEAST_TOGETHER) & (one != other)
            one, other, times = one[often], other[often], both.data[often]
            share = times / np.sqrt(count[one] * count[other])
            order = np.lexsort((other, -share, one))
            one, other, share = one[order], other[order], share[order]
            rank = np.arange(len(one)) - np.searchsorted(one, one)
            first = rank < n
            best[one[first], rank[first]], shares[one[first], rank[first]] = other[first], share[first]
        return torch.from_numpy(best), torch.from_numpy(shares)
