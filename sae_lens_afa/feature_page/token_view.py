"""The first tokens of the text, each with the features that it is made of."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lens_afa import over_ranks
from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page.portions import portions
from sae_lens_afa.feature_page.stages import is_pursuit, joining_stages

# Tokens that are taken apart, and the strongest features of each that are listed.
TOKENS, FEATURES = 1024, 24


class TokensApart(NamedTuple):
    """Tokens, taken apart.

    Attributes:
        place: Places of the tokens in the text, [tokens].
        l0: Their numbers of active features.
        norm_ratio: ||f|| / ||z||, both as AFA measures them.
        explained: Share of ||x||^2 that the reconstruction explains.
        latent: The features with most energy, [tokens, FEATURES]; -1 where there are fewer.
        value: Their activations.
        share: Their shares of ||f||^2.
        stage: The stages in which they joined; None unless the SAE pursues.
    """

    place: Tensor
    l0: Tensor
    norm_ratio: Tensor
    explained: Tensor
    latent: Tensor
    value: Tensor
    share: Tensor
    stage: Tensor | None


class FirstTokens:
    """Keeps the activations of the first tokens of a stream, until they are taken apart.

    Args:
        space: The SAE.
    """

    def __init__(self, space: SAESpace) -> None:
        self._space = space
        self._rows: list[Tensor] = []
        self._places: list[Tensor] = []
        self._missing = TOKENS

    def add(self, rows: Tensor, places: Tensor) -> None:
        """Take tokens [tokens, d_in] and their places, until there are enough."""
        if self._missing > 0 and len(rows) > 0:
            self._rows.append(rows[: self._missing].cpu().clone())
            self._places.append(places[: self._missing])
            self._missing -= len(self._rows[-1])

    def taken_apart(self) -> TokensApart:
        """Return the tokens with their features; ranks that share a text call this together."""
        kept = chain.from_iterable(over_ranks.of_all([*zip(self._rows, self._places, strict=True)]))
        batches = sorted(kept, key=lambda batch: int(batch[1][0]))
        rows, places = (torch.cat(each)[:TOKENS] for each in zip(*batches, strict=True))
        rows = rows.to(self._space.sae.W_dec.device)
        parts = [self._part(part) for _, part in portions(rows, self._space.d_sae)]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        stage = columns.pop("stage", None)
        return TokensApart(place=places, stage=stage, **columns)

    def _part(self, rows: Tensor) -> dict[str, Tensor]:
        """Return what is known of some tokens, by the names in `TokensApart`."""
        space, coded = self._space, self._space.code(rows)
        acts = coded.feature_acts.to_dense().float()
        energy = acts.square()
        if space.decoder_norm is not None:
            energy = energy * space.decoder_norm.to(energy).square()
        total = energy.sum(-1, keepdim=True)
        best, latent = energy.topk(min(FEATURES, space.d_sae), dim=1)
        error = (rows.to(coded.raw_recons) - coded.raw_recons).float().square().sum(-1)
        columns = {
            "l0": (acts != 0).sum(-1),
            "norm_ratio": total.squeeze(-1).sqrt() / torch.linalg.vector_norm(coded.dense.float(), dim=-1),
            "explained": 1 - error / rows.to(error).square().sum(-1),
            "latent": torch.where(best > 0, latent, -1),
            "value": acts.gather(1, latent),
            "share": best / total.clamp(min=torch.finfo(total.dtype).tiny),
        }
        if is_pursuit(space.sae):
            columns["stage"] = joining_stages(space.sae, coded.dense).gather(1, latent).long()
        return {name: column.cpu() for name, column in columns.items()}
