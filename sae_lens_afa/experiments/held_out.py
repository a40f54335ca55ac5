"""Text that no SAE was trained on, with a model's activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import ActivationsStore
from torch import Tensor

from sae_lens_afa.evals.hook_reader import hook_activations
from sae_lens_afa.evals.prompts import batches_once
from sae_lens_afa.experiments.measures import Centred
from sae_lens_afa.experiments.text_source import PROMPTS, TextSource
from sae_lens_afa.loading.models import check_hook_name

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

# Tokens from which the mean token of a text is taken.
_MEAN_TOKENS = 16_384


@dataclass(frozen=True)
class HeldOut:
    """Text that was not trained on.

    Attributes:
        prompts: Tokens, [prompts, context_size].
        activations: Raw ones of all of them but what the source leaves out, [tokens, d_in] by hook, on the CPU.
        spaces: What is taken off them, by hook.
    """

    prompts: Tensor
    activations: Mapping[str, Tensor]
    spaces: Mapping[str, Centred]

    def standardised(self, hook: str) -> Tensor:
        """Return the activations of a hook in the space in which SAEs are compared, [tokens, d_in]."""
        return self.spaces[hook].standardised(self.activations[hook])


def held_out(
    source: TextSource,
    model: HookedRootModule,
    datasets: tuple[Any, Any],
    hooks: Sequence[str],
    tokens: int,
    device: str,
) -> HeldOut:
    """Return at least `tokens` tokens of the second of two texts with their activations; the first one is trained on.

    Raises:
        ValueError: it has fewer, or the other one has none.
    """
    train, test = datasets
    prompts, activations = _read(source, model, test, hooks, tokens, device)
    if prompts.numel() < tokens:
        raise ValueError(
            f"the held-out text has fewer than test_tokens={tokens} tokens; lower it or give a larger dataset."
        )
    return HeldOut(prompts, activations, _spaces(source, model, train, hooks, device))


def _spaces(
    source: TextSource, model: HookedRootModule, dataset: Any, hooks: Sequence[str], device: str
) -> dict[str, Centred]:
    """Return what is taken off the activations of each hook: their mean over the start of a text, if anything."""
    if not source.centred:
        return {hook: Centred() for hook in hooks}
    prompts, found = _read(source, model, dataset, hooks, _MEAN_TOKENS, device)
    if len(prompts) == 0:
        raise ValueError(
            f"dataset has no prompt of {source.context_size} tokens to train on beyond the documents that are held out;"
            " give a larger dataset."
        )
    return {hook: Centred(mean=activations.mean(0)) for hook, activations in found.items()}


@torch.no_grad()
def _read(
    source: TextSource, model: HookedRootModule, dataset: Any, hooks: Sequence[str], tokens: int, device: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return prompts of a text, of `tokens` tokens or all that it has, and their activations by hook."""
    store = ActivationsStore.from_config_multi_hook(
        model, dataset=dataset, hook_names=list(hooks), hook_d_ins=hook_widths(model, hooks), streaming=False,
        context_size=source.context_size, store_batch_size_prompts=PROMPTS, device=device,
    )  # fmt: skip
    left_out = torch.tensor(source.left_out(model), dtype=torch.long)
    prompts = [torch.empty(0, source.context_size, dtype=torch.long, device=device)]
    kept: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    n_batches = -(-tokens // (source.context_size * PROMPTS))
    for batch in batches_once(store, n_batches * PROMPTS, PROMPTS):
        cache = hook_activations(model, store, batch, hooks)
        wanted = ~torch.isin(batch.cpu(), left_out)
        prompts.append(batch)
        for hook in hooks:
            kept[hook].append(cache[hook].float().cpu()[wanted])
    return torch.cat(prompts), {hook: torch.cat(parts) for hook, parts in kept.items() if parts}


@torch.no_grad()
def hook_widths(model: HookedRootModule, hooks: Sequence[str]) -> dict[str, int]:
    """Return d_in at each hook.

    Raises:
        ValueError: the model has no such hook, or it is not [batch, position, d_in].
    """
    for hook in hooks:
        check_hook_name(model, hook)
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    cache: Any = model.run_with_cache(token, names_filter=list(hooks))[1]
    for hook in hooks:
        if cache[hook].ndim != 3:
            raise ValueError(f"hook {hook!r} has shape {list(cache[hook].shape)}, expected [batch, position, d_in].")
    return {hook: cache[hook].shape[-1] for hook in hooks}
