"""The content of a page: the table of latents, and all that a card or a token shows, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lens_afa.evals.hook_reader import HookReader
from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page import directions
from sae_lens_afa.feature_page.collected import Collected
from sae_lens_afa.feature_page.examples import ExampleKeeper
from sae_lens_afa.feature_page.vocabulary import Vocabulary

# Neighbours and companions of a latent, and tokens that it promotes and suppresses, each.
_RELATED, _PROMOTED = 6, 10
# Of a number that is none.
_NONE = 0xFFFFFFFF


@dataclass(frozen=True)
class PageContent:
    """Table, texts and arrays of a page.

    Attributes:
        table: A row for each latent, as `FeaturesReport.table`.
        texts: Texts of the tokens, by the numbers that the arrays use.
        arrays: By name, what `page.js` reads; the first axis of most is the latents.
    """

    table: pd.DataFrame
    texts: list[str]
    arrays: Mapping[str, NDArray[Any]]


@torch.no_grad()
def page_content(space: SAESpace, hook: HookReader, model: Any, collected: Collected) -> PageContent:
    """Return what the page of an SAE shows: from what was collected on a text, and from its decoder."""
    rows = directions.unit_rows(space.sae.W_dec)
    nearest, cosine = directions.nearest(rows, _RELATED)
    companion, together = collected.companions.strongest(_RELATED)
    promoted = directions.promoted_tokens(rows, hook, model, _PROMOTED)
    apart = collected.first_tokens.taken_apart()
    examples = {"strongest": collected.strongest, "sampled": collected.sampled}
    text = _ShownText(collected.prompts, [apart.place, *(each.place for each in examples.values())])
    vocabulary = Vocabulary(getattr(model, "tokenizer", None), text.ids, *([promoted[0].numpy()] if promoted else []))
    table = _table(space, collected, nearest[:, 0], cosine[:, 0], vocabulary)
    arrays: dict[str, NDArray[Any]] = {
        "text": vocabulary.numbers(text.ids),
        **{name: table[name].to_numpy(np.float32) for name in ("density", "mean", "max", "energy_share")},
        "histogram": collected.tally.histogram.numpy().astype(np.uint32),
        "bin_edges": collected.tally.bin_edges().astype(np.float32),
        "nearest": _numbers(nearest), "cosine": _floats(cosine),
        "companion": _numbers(companion), "together": _floats(together),
        "token_place": text.places(apart.place), "token_l0": _numbers(apart.l0),
        "token_norm_ratio": _floats(apart.norm_ratio), "token_explained": _floats(apart.explained),
        "token_latent": _numbers(apart.latent), "token_value": _floats(apart.value),
        "token_share": _floats(apart.share),
    }  # fmt: skip
    if apart.stage is not None:
        arrays["token_stage"] = _numbers(apart.stage)
    if promoted:
        arrays["promoted"], arrays["promoted_logit"] = vocabulary.numbers(promoted[0].numpy()), _floats(promoted[1])
    for name, keeper in examples.items():
        arrays[name] = text.places(keeper.place)
        arrays[f"{name}_value"] = _floats(keeper.value)
        arrays[f"{name}_shade"] = _shades(keeper, collected.tally.largest)
    return PageContent(table, vocabulary.texts, arrays)


class _ShownText:
    """The prompts that a page shows something of, numbered anew."""

    def __init__(self, prompts: NDArray[np.int32], places: list[Tensor]) -> None:
        self._context = prompts.shape[1]
        shown = np.concatenate([each.numpy().ravel() for each in places])
        self._prompts = np.unique(shown[shown >= 0] // self._context)
        self.ids = prompts[self._prompts]

    def places(self, place: Tensor) -> NDArray[np.uint32]:
        """Return places in the text as places in what is shown of it; none stays none."""
        prompt, position = np.divmod(place.numpy(), self._context)
        moved = np.searchsorted(self._prompts, prompt) * self._context + position
        return np.where(place.numpy() < 0, _NONE, moved).astype(np.uint32)


def _table(
    space: SAESpace, collected: Collected, nearest: Tensor, cosine: Tensor, vocabulary: Vocabulary
) -> pd.DataFrame:
    tally = collected.tally
    count = tally.count.numpy()
    energy = tally.squares.numpy()
    if space.decoder_norm is not None:
        energy = energy * space.decoder_norm.cpu().numpy() ** 2
    place = collected.strongest.place[:, 0].numpy()
    tokens = vocabulary.numbers(collected.prompts.ravel()[np.maximum(place, 0)])
    return pd.DataFrame(
        {
            "latent": np.arange(len(count)),
            "density": count / collected.n_tokens,
            "mean": tally.total.numpy() / np.maximum(count, 1),
            "max": tally.largest.double().numpy(),
            "energy_share": energy / max(energy.sum(), np.finfo(float).tiny),
            "is_dead": count == 0,
            "nearest": nearest.numpy(),
            "cosine": cosine.double().numpy(),
            "token": ["" if at < 0 else vocabulary.texts[token] for at, token in zip(place, tokens, strict=True)],
        }
    )


def _shades(keeper: ExampleKeeper, largest: Tensor) -> NDArray[np.uint8]:
    """Return sizes of activations around examples in 255ths of the latent's largest; what is active is at least 1."""
    window = keeper.window.float()
    share = (window.abs() / largest.clamp(min=1e-30)[:, None, None]).clamp(0, 1)
    return ((share * 254).ceil() + (window != 0)).clamp(max=255).byte().numpy()


def _numbers(values: Tensor) -> NDArray[np.uint32]:
    """Return numbers of latents, stages and the like; negative ones, for none, as the largest there is."""
    return np.where(values.numpy() < 0, _NONE, values.numpy()).astype(np.uint32)


def _floats(values: Tensor) -> NDArray[np.float32]:
    return values.float().numpy()
