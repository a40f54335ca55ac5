"""One pass over a text, in which all that a page shows of the activations is collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import ActivationsStore
from torch import Tensor

from sae_lens_afa import over_ranks
from sae_lens_afa.evals.attached import saes_detached
from sae_lens_afa.evals.hook_reader import HookReader, hook_activations
from sae_lens_afa.evals.judged_tokens import JudgedTokens
from sae_lens_afa.evals.prompts import PromptReader
from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page.active_entries import active_entries
from sae_lens_afa.feature_page.companions import Companions
from sae_lens_afa.feature_page.examples import ExampleKeeper
from sae_lens_afa.feature_page.tally import Tally
from sae_lens_afa.feature_page.token_view import FirstTokens
from sae_lens_afa.loading.models import check_context

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

# Examples of each latent: the strongest of different prompts, and a fair sample of its tokens.
STRONGEST, SAMPLED = 10, 12


class Collected(NamedTuple):
    """All that a text says of an SAE's latents.

    Attributes:
        prompts: Token ids of the text, [prompts, context].
        n_tokens: Tokens that were coded.
        tally: Counts, sums and histograms.
        strongest: The strongest examples, each of another prompt.
        sampled: A fair sample of the tokens on which each latent is active, the strongest first.
        companions: Latents that come together.
        first_tokens: Tokens to take apart.
    """

    prompts: NDArray[np.int32]
    n_tokens: int
    tally: Tally
    strongest: ExampleKeeper
    sampled: ExampleKeeper
    companions: Companions
    first_tokens: FirstTokens


class _Collector:
    """Takes the activations of prompts, and adds them to all that is collected.

    What is drawn is drawn for each batch anew, so that it does not depend on which rank takes which.
    """

    def __init__(self, space: SAESpace, tokens: int, seed: int) -> None:
        self._space, self._seed = space, seed
        self.tally = Tally(space.d_sae)
        self.strongest = ExampleKeeper(space.d_sae, STRONGEST)
        self.sampled = ExampleKeeper(space.d_sae, SAMPLED)
        self.companions = Companions(space.d_sae, tokens)
        self.first_tokens = FirstTokens(space)

    def add(self, rows: Tensor, mask: Tensor, n_before: int) -> None:
        """Take the tokens [tokens, d_in] that a mask selects from prompts [prompts, context]."""
        places = mask.flatten().nonzero().flatten()
        entries = active_entries(self._space, rows, places, mask.numel(), mask.shape[1])
        candidates = entries.strongest_of_each_prompt()
        generator = torch.Generator().manual_seed(hash((self._seed, n_before)))
        self.tally.add(entries, n_before)
        self.strongest.add(candidates, candidates.value.abs(), entries, n_before)
        self.sampled.add(entries, torch.rand(len(entries.value), generator=generator), entries, n_before)
        self.companions.add(entries, generator)
        self.first_tokens.add(rows, places + n_before)

    def join_ranks(self) -> None:
        """Take in what the other ranks have collected; all of them call this together."""
        self.tally, self.companions = over_ranks.merged(self.tally), over_ranks.merged(self.companions)
        self.strongest, self.sampled = over_ranks.merged(self.strongest), over_ranks.merged(self.sampled)


@torch.no_grad()
def collect(
    space: SAESpace,
    store: ActivationsStore,
    model: HookedRootModule,
    *,
    tokens: int,
    batch_size_prompts: int | None,
    positions: Any,
    exclude_special_tokens: Any,
    seed: int,
    progress: bool,
) -> Collected:
    """Read a text through the model and the SAE; the arguments are those of `features`.

    Raises:
        ValueError: as `features`.
    """
    sae = space.sae
    hook = HookReader(sae, store, model)
    judged = JudgedTokens(sae, store, model, tokens, positions, exclude_special_tokens)
    # All prompts: with one position of each there are as many as tokens.
    reader = PromptReader(store, tokens, max_remembered=tokens * store.context_size)
    collector = _Collector(space, tokens, seed)
    with saes_detached(model):
        hook.check()
        check_context(model, store.context_size)
        for n_before, batch, (mask,) in reader.batches(batch_size_prompts, [judged], "features", progress=progress):
            rows = torch.empty(0, space.d_in)
            if mask.any():
                rows = space.rows(hook.rows(hook_activations(model, store, batch, [hook.name]), mask))
            collector.add(rows, mask, n_before)
    judged.check_judged()
    collector.join_ranks()
    collector.sampled.sort_by_value()
    return Collected(
        reader.prompts, judged.n_judged, collector.tally, collector.strongest, collector.sampled,
        collector.companions, collector.first_tokens,
    )  # fmt: skip
