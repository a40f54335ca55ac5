"""Activations of a model at the hook point that an SAE codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from sae_lens_afa.loading.models import check_hook

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


class HookReader:
    """The hook point of one SAE: as its metadata names it, else as the store does.

    Args:
        sae: The SAE.
        store: Feeds an SAE that names no hook.
        model: The model that has the hook.

    Attributes:
        name: Name of the hook point.
        head: The one head whose activation is coded; None for all of it.
    """

    def __init__(self, sae: SAE[Any], store: ActivationsStore, model: HookedRootModule) -> None:
        named = store if sae.cfg.metadata.hook_name is None else sae.cfg.metadata
        self.name: str = named.hook_name
        self.head: int | None = named.hook_head_index
        self._d_in, self._model = sae.cfg.d_in, model

    def check(self) -> None:
        """Refuse a hook that cannot feed the SAE.

        Raises:
            ValueError: the model does not have it, or it is not d_in wide.
        """
        check_hook(self._model, self.name, self._d_in, self.head)

    def rows(self, cache: Mapping[str, Tensor], mask: Bool[Tensor, "prompts context"]) -> Float[Tensor, "tokens d_in"]:
        """Return the activations of the tokens that a mask (on the CPU) selects, of a pass of `hook_activations`."""
        acts = cache[self.name]
        if self.head is not None:
            acts = acts[:, :, self.head]
        return acts.flatten(2)[mask.to(acts.device)]


def hook_activations(
    model: HookedRootModule, store: ActivationsStore, batch: Int[Tensor, "prompts context"], hook_names: Sequence[str]
) -> Mapping[str, Tensor]:
    """Return the hooks' activations, of one forward pass that stops after the last of them; no hook needs no pass.

    Args:
        model: The model.
        store: Knows its `model_kwargs`, and whether it runs under autocast.
        batch: Token ids.
        hook_names: Names of hook points.
    """
    if not hook_names:
        return {}
    stops = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    last = None if None in stops else max(stop for stop in stops if stop is not None)
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=store.autocast_lm):
        return model.run_with_cache(
            batch, names_filter=list(hook_names), stop_at_layer=last, prepend_bos=False, **store.model_kwargs
        )[1]
