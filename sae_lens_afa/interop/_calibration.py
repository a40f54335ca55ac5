"""Thresholds of single features that agree best with a selection made per token, from a stream of tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Bins are the leading bits of a float32: 16 to an octave, so their edges are exact in bfloat16 too.
_DROPPED_BITS = 19
_BINS_PER_OCTAVE = 16
# Kept octaves below and above the largest pre-activation that is seen first.
_OCTAVES_BELOW, _OCTAVES_ABOVE = 20, 4
_LARGEST_FINITE = 254 * _BINS_PER_OCTAVE + _BINS_PER_OCTAVE - 1
_BLOCK_ELEMENTS = 2**21


class ThresholdCalibration:
    """Counts of selections, and of pre-activations that were not selected, by feature and size.

    `thresholds` then minimises, feature by feature, the number of tokens on which `hidden_pre > threshold` and the
    selection differ. For that only the difference of both counts matters: one int32 histogram of 400 logarithmic bins
    (3 to 6 % wide), 1.6 kB per feature, however long the stream. What batches it comes in makes no difference, but
    for pre-activations that differ by more than 2^20.

    Args:
        d_sae: Number of features.
    """

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self._net: Tensor | None = None
        self._first_bin = 0
        self._n_bins = (_OCTAVES_BELOW + 1 + _OCTAVES_ABOVE) * _BINS_PER_OCTAVE
        self._smallest_on: Tensor | None = None
        self._largest_off: Tensor | None = None

    def add(self, hidden_pre: Float[Tensor, "tokens d_sae"], selected: Bool[Tensor, "tokens d_sae"]) -> None:
        """Count tokens: their pre-activations, and which features the original keeps."""
        rows = max(1, _BLOCK_ELEMENTS // self.d_sae)
        for pre, kept in zip(hidden_pre.split(rows), selected.split(rows), strict=True):
            self._add_extremes(pre, kept)
            positive = pre > 0
            if positive.any():
                self._add_counts(pre, kept, positive)

    def _add_extremes(self, pre: Tensor, kept: Tensor) -> None:
        on = torch.where(kept, pre, torch.inf).amin(0)
        off = torch.where(kept, 0, pre).amax(0).clamp(min=0)
        self._smallest_on = on if self._smallest_on is None else torch.minimum(self._smallest_on, on)
        self._largest_off = off if self._largest_off is None else torch.maximum(self._largest_off, off)

    def _add_counts(self, pre: Tensor, kept: Tensor, positive: Tensor) -> None:
        # Less one bit: a bin holds its upper edge and not its lower one, as `hidden_pre > threshold` does.
        bins = (pre[positive].float().view(torch.int32) - 1) >> _DROPPED_BITS
        if self._net is None:
            octave = int(bins.amax()) // _BINS_PER_OCTAVE
            self._first_bin = max(0, (octave - _OCTAVES_BELOW) * _BINS_PER_OCTAVE)
            self._net = torch.zeros(self.d_sae * self._n_bins, dtype=torch.int32, device=pre.device)
        bins = (bins - self._first_bin).clamp_(0, self._n_bins - 1)
        feature = torch.arange(self.d_sae, device=pre.device).expand_as(pre)[positive]
        self._net.index_add_(0, feature * self._n_bins + bins, kept[positive].int() * 2 - 1)

    def never_selected(self) -> Bool[Tensor, " d_sae"]:
        """Return the features that no token selected."""
        assert self._smallest_on is not None
        return self._smallest_on.isinf()

    def thresholds(self, decoder_norm: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """Return the calibrated thresholds, in units of the pre-activations and in their dtype; finite, not negative.

        Of equally good bins the lowest is taken; where selected and other pre-activations do not overlap, the middle
        between them. A feature that was never selected gets the largest pre-activation it was seen with, but at least
        the median threshold of the others in units of `hidden_pre * decoder_norm`.

        Args:
            decoder_norm: ||d_i||.
        """
        assert self._smallest_on is not None
        assert self._largest_off is not None
        on, off = self._smallest_on, self._largest_off
        dtype = on.dtype
        overlap = self._best_edges(on.device).to(dtype)
        middle = off + (on - off) / 2
        middle = torch.where(middle < on, middle, off)  # on a coarse grid the middle may round up
        best = torch.where(off == 0, 0, torch.where(off < on, middle, overlap))
        never = self.never_selected()
        if not never.all():
            norm = decoder_norm.double().cpu()  # not everywhere is there float64 beside the CPU
            usual = (best.cpu() * norm)[~never.cpu()].median() / norm
            off = torch.maximum(off, torch.where(norm > 0, usual, 0).to(on))
        return torch.where(never, off, best).clamp(max=torch.finfo(dtype).max)

    def _best_edges(self, device: torch.device) -> Float[Tensor, " d_sae"]:
        if self._net is None:
            return torch.zeros(self.d_sae, device=device)
        ids = torch.arange(self._first_bin, self._first_bin + self._n_bins + 1, dtype=torch.int32, device=device)
        edges = (ids.clamp(max=_LARGEST_FINITE) << _DROPPED_BITS).view(torch.float32)
        edges[0] = 0
        best = [
            # Tokens that agree if the bins from here on are "on", less those if all are "off".
            torch.nn.functional.pad(net.flip(1).cumsum(1, dtype=torch.int32).flip(1), (0, 1)).argmax(1)
            for net in self._net.view(self.d_sae, self._n_bins).split(4096)
        ]
        return edges[torch.cat(best)]
