"""Counts, sums and histograms of the activations of every latent, over a stream."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lens_afa import over_ranks
from sae_lens_afa.feature_page.active_entries import ActiveEntries

# Bins of a histogram, four to a factor of two; the last is the first batch's largest activation and a factor of four.
BINS, PER_OCTAVE, _HEADROOM = 64, 4, 2


class Tally:
    """Counts, sums and a histogram for each latent, none of whose activations is kept.

    Args:
        d_sae: Number of latents.

    Attributes:
        count: Tokens on which each is active, [d_sae].
        total: Sum of its activations.
        squares: Sum of their squares.
        largest: The largest, in size; 0 where it is never active.
        histogram: Tokens by bin of the activation's size, [d_sae, BINS]; both ends take what is beyond them.
    """

    def __init__(self, d_sae: int) -> None:
        self.count = torch.zeros(d_sae, dtype=torch.long)
        self.total, self.squares = torch.zeros(2, d_sae, dtype=torch.float64)
        self.largest = torch.zeros(d_sae)
        self.histogram = torch.zeros(d_sae, BINS, dtype=torch.int32)
        self._first_exponent: int | None = None

    def add(self, entries: ActiveEntries, n_before: int = 0) -> None:
        """Count the active features of some prompts; ranks that share a text call this together.

        Args:
            entries: The active features.
            n_before: Places of the text before these prompts.
        """
        latent, value = entries.latent, entries.value
        if self._first_exponent is None:
            self._set_scale(value.abs(), n_before)
        if len(latent) == 0:
            return
        d_sae = len(self.count)
        self.count += latent.bincount(minlength=d_sae)
        self.total += latent.bincount(weights=value.double(), minlength=d_sae)
        self.squares += latent.bincount(weights=value.double().square(), minlength=d_sae)
        self.largest.scatter_reduce_(0, latent, value.abs(), "amax")
        bins = latent * BINS + self._bin_of(value.abs())
        self.histogram.view(-1).index_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))

    def merge(self, other: Tally) -> None:
        """Count what another rank has counted of the same text."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.largest = torch.maximum(self.largest, other.largest)
        self.histogram += other.histogram

    def _set_scale(self, value: Tensor, n_before: int) -> None:
        """Take the histogram's scale from the sizes in the text's first batch that has any, on whichever rank."""
        mine = (n_before, float(value.max())) if len(value) > 0 else None
        found = [each for each in over_ranks.of_all(mine) if each is not None]
        if found:
            top = math.ceil(math.log2(max(min(found)[1], 1e-30))) + _HEADROOM
            self._first_exponent = top - BINS // PER_OCTAVE

    def _bin_of(self, value: Tensor) -> Tensor:
        """Return the bins of sizes."""
        assert self._first_exponent is not None
        exponent = value.clamp(min=1e-38).log2() - self._first_exponent
        return (exponent * PER_OCTAVE).floor().clamp(0, BINS - 1).long()

    def bin_edges(self) -> NDArray[np.float64]:
        """Return the edges of the bins, [BINS + 1]."""
        first = 0 if self._first_exponent is None else self._first_exponent
        return 2.0 ** (first + np.arange(BINS + 1) / PER_OCTAVE)
