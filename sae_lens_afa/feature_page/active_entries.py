"""The active features of some prompts as a sorted list: a [tokens, d_sae] matrix is never kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page.portions import portions


class ActiveEntries(NamedTuple):
    """The active features of some prompts, sorted by latent, then by place; on the CPU.

    Attributes:
        latent: Number of the latent.
        place: Place of the token, prompt * context + position.
        value: Activation; below zero in SAEs that have such ones.
        n_places: Places that there are.
        context: Tokens of a prompt.
    """

    latent: Int[Tensor, " entries"]
    place: Int[Tensor, " entries"]
    value: Float[Tensor, " entries"]
    n_places: int
    context: int

    def __getitem__(self, keep: Tensor) -> ActiveEntries:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return some of the entries, given by a mask or by ascending numbers."""
        return ActiveEntries(self.latent[keep], self.place[keep], self.value[keep], self.n_places, self.context)

    def windows(
        self, latent: Int[Tensor, " n"], place: Int[Tensor, " n"], before: int, after: int
    ) -> Float[Tensor, "n window"]:
        """Return a latent's activations around a place: 0 where it is inactive, and outside of the place's prompt."""
        offsets = torch.arange(-before, after + 1)
        position = place[:, None] % self.context + offsets
        wanted = latent[:, None] * self.n_places + place[:, None] + offsets
        keys = self.latent * self.n_places + self.place
        found = torch.searchsorted(keys, wanted).clamp(max=max(0, len(keys) - 1))
        is_there = (keys[found] == wanted) & (position >= 0) & (position < self.context)
        return torch.where(is_there, self.value[found], 0)

    def strongest_of_each_prompt(self) -> ActiveEntries:
        """Return, for each latent and prompt, the entry with the largest activation, in size."""
        if len(self.latent) == 0:
            return self
        group = self.latent * (self.n_places // self.context) + self.place // self.context
        _, number, count = group.unique_consecutive(return_inverse=True, return_counts=True)
        size = self.value.abs()
        largest = torch.zeros(len(count)).scatter_reduce(0, number, size, "amax")
        candidates = (size == largest[number]).nonzero().flatten()
        first = torch.ones(len(candidates), dtype=torch.bool)
        first[1:] = number[candidates[1:]] != number[candidates[:-1]]
        return self[candidates[first]]


def active_entries(
    space: SAESpace, rows: Float[Tensor, "tokens d_in"], places: Int[Tensor, " tokens"], n_places: int, context: int
) -> ActiveEntries:
    """Code tokens, and return what is active in them. Tokens whose code is not finite are left out.

    Args:
        space: The SAE.
        rows: Raw activations.
        places: Places of the tokens, ascending.
        n_places: Places that there are.
        context: Tokens of a prompt.
    """
    none = torch.empty(0, dtype=torch.long)
    parts: list[tuple[Tensor, Tensor, Tensor]] = [(none, none, torch.empty(0))]
    for start, part in portions(rows, space.d_sae):
        acts, at = space.code(part).feature_acts.to_dense(), places[start : start + len(part)]
        token, latent = acts.nonzero(as_tuple=True)
        value = acts[token, latent].float().cpu()
        token, latent = token.cpu(), latent.cpu()
        damaged = torch.zeros(len(part), dtype=torch.bool)
        damaged[token[~value.isfinite()]] = True
        good = ~damaged[token]
        parts.append((latent[good], at[token[good]], value[good]))
    latent, place, value = (torch.cat(each) for each in zip(*parts, strict=True))
    order = (latent * n_places + place).argsort()
    return ActiveEntries(latent[order], place[order], value[order], n_places, context)
