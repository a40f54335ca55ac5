"""Prompts of a text, read once and remembered for the contexts of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from sae_lens import ActivationsStore
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_afa import over_ranks
from sae_lens_afa._support import warn
from sae_lens_afa.evals.judged_tokens import JudgedTokens
from sae_lens_afa.evals.result import AFAResult

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.HookedRootModule import HookedRootModule

# Tokens before the judged one that its context shows.
_CONTEXT = 12


def next_prompts(store: ActivationsStore, size: int) -> Int[Tensor, "prompts context"] | None:
    """Return the next `size` prompts of the store's text; fewer, or None, at its end, after which it begins anew."""
    prompts: list[Tensor] = []
    for _ in range(size):
        try:
            # One at a time: at the end of the text the store drops a batch that it has begun.
            prompts.append(store.get_batch_tokens(1, raise_at_epoch_end=True))
        except StopIteration:
            break
    return torch.cat(prompts) if prompts else None


def batches_once(store: ActivationsStore, n: int, size: int) -> Iterator[Int[Tensor, "prompts context"]]:
    """Yield the next n prompts of the store's text, `size` at a time; fewer where it ends before."""
    while n > 0:
        wanted = min(size, n)
        batch = next_prompts(store, wanted)
        if batch is not None:
            yield batch
        n = n - wanted if batch is not None and len(batch) == wanted else 0


class PromptBatch(NamedTuple):
    """Prompts that one rank takes.

    Attributes:
        n_before: Tokens of the text before them.
        ids: Token ids, [prompts, context].
        masks: For each SAE, which of the tokens it is judged on, [prompts, context], on the CPU.
    """

    n_before: int
    ids: Int[Tensor, "prompts context"]
    masks: list[Bool[Tensor, "prompts context"]]


class PromptReader:
    """The prompts of a store's text, read once: by the first rank, where several share the evaluation.

    Args:
        store: The store.
        tokens: Tokens that each SAE is to get.
        max_remembered: Tokens whose prompts are remembered.

    Raises:
        ValueError: a store of cached activations, which has no token ids.
    """

    def __init__(self, store: ActivationsStore, tokens: int, max_remembered: int) -> None:
        if store.dataset is None:
            raise ValueError(
                "activation_store reads cached activations and has no token ids: give the activations to"
                " evaluate_activations instead."
            )
        self._store, self._tokens = store, tokens
        self._width = store.context_size
        self._prompts: list[NDArray[np.int32]] = []
        self._max_prompts = -(-max_remembered // self._width)
        self._n_prompts = 0

    def batches(
        self, batch_size: int | None, judged: Sequence[JudgedTokens], desc: str, *, progress: bool
    ) -> Iterator[PromptBatch]:
        """Yield this rank's prompts until all of `judged` have read enough; `desc` is on the first rank's progress bar.

        They are read in rounds, of a batch for each rank. All ranks see as many rounds; in the last, one that there
        are no more prompts for gets an empty batch. The batches are those that one process would read.
        """
        size = batch_size or self._store.store_batch_size_prompts
        rank, device = over_ranks.rank(), next(self._store.model.parameters()).device  # the store's may be another
        own = slice(rank * size, (rank + 1) * size)
        with tqdm(total=self._tokens, unit=" tokens", desc=desc, disable=not progress or rank != 0) as bar:
            for prompts in self._rounds(size, max(each.n_missing_prompts for each in judged)):
                if self._n_prompts < self._max_prompts:
                    self._prompts.append(prompts[: self._max_prompts - self._n_prompts].numpy().astype(np.int32))
                masks = [each.take(prompts)[own] for each in judged]
                yield PromptBatch((self._n_prompts + own.start) * self._width, prompts[own].to(device), masks)
                self._n_prompts += len(prompts)
                bar.update(min(each.n_read for each in judged) - bar.n)
            read = min(each.n_read for each in judged)
            if 0 < read < self._tokens and rank == 0:
                warn(f"the text ended after {read} of {self._tokens} tokens.")

    def _rounds(self, size: int, missing: int) -> Iterator[Int[Tensor, "prompts context"]]:
        """Yield, on the CPU of all ranks, `size` prompts for each, until there are those that are missing."""
        whole_batches = -(-missing // size) * size
        rounds = batches_once(self._store, whole_batches, size * over_ranks.n_ranks())

        def next_round() -> Tensor | None:
            prompts = next(rounds, None)
            return None if prompts is None else prompts.cpu()

        return iter(lambda: over_ranks.from_first(next_round), None)

    @property
    def prompts(self) -> NDArray[np.int32]:
        """Token ids of the prompts that are remembered, [prompts, context]."""
        return np.concatenate(self._prompts) if self._prompts else np.empty((0, self._width), dtype=np.int32)

    def annotate(self, result: AFAResult, model: HookedRootModule) -> AFAResult:
        """Return the result with the position, the token and the context of each token that is kept."""
        tokenizer: Any = getattr(model, "tokenizer", None)
        prompts: list[list[int]] = self.prompts.tolist()

        def annotated(tokens: pd.DataFrame) -> pd.DataFrame:
            place = tokens["token_index"].to_numpy()
            prompt, position = np.divmod(place, self._width)
            columns: dict[str, Any] = {"prompt": prompt, "position": position}
            if tokenizer is not None:
                known = [prompts[p] if p < len(prompts) else [] for p in prompt]
                pairs = list(zip(known, position, strict=True))
                columns["token"] = _decoded(tokenizer, [ids[i : i + 1] for ids, i in pairs])
                columns["context"] = _decoded(tokenizer, [ids[max(0, i - _CONTEXT) : i + 1] for ids, i in pairs])
            return tokens.assign(**columns)

        return result.map_tokens(annotated)


def _decoded(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    """Return the texts of tokens, of which each rank that shares the evaluation decodes a part."""
    share = -(-len(ids) // over_ranks.n_ranks())
    first = over_ranks.rank() * share
    own = ids[first : first + share]
    # Of no sequences a tokenizer makes one empty text.
    return list(chain.from_iterable(over_ranks.of_all(tokenizer.batch_decode(own) if own else [])))
