"""The language model's cross-entropy with an SAE's reconstruction in place of the activations."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Int
from sae_lens.evals import get_recons_loss
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_lens_afa import over_ranks

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_NAMES = ("ce_loss_without_sae", "ce_loss_with_sae", "ce_loss_with_ablation")


class CrossEntropy:
    """Means over tokens of SAELens' next-token losses (nats): untouched, with the SAE, with zeros in its place.

    Args:
        sae: The SAE.
        model: The model whose activations it codes.
        hook_name: Hook point of these activations.
        activation_scaler: The trainer's scaling, where it is not folded into the SAE.
        model_kwargs: Arguments of each forward pass.
        excluded_ids: Ids of tokens whose activations the SAE leaves as they are.

    Attributes:
        n_tokens: Tokens predicted so far.
    """

    def __init__(
        self,
        sae: SAE[Any],
        model: HookedRootModule,
        hook_name: str,
        activation_scaler: ActivationScaler | None,
        model_kwargs: Mapping[str, Any],
        excluded_ids: Sequence[int] = (),
    ) -> None:
        self._sae, self._model, self._hook_name, self._kwargs = sae, model, hook_name, model_kwargs
        self._scaler, self._excluded_ids = activation_scaler or ActivationScaler(), list(excluded_ids)
        self._sums = dict.fromkeys(_NAMES, 0.0)
        self.n_tokens = 0

    def add(self, prompts: Int[Tensor, "prompts context"]) -> None:
        """Run the model three times on these prompts; SAEs are not to be attached to it (see `saes_detached`)."""
        with _heads_joined_outside(self._sae):
            losses = get_recons_loss(
                self._sae, self._model, self._scaler, prompts, compute_kl=False, compute_ce_loss=True,
                ignore_tokens=self._excluded_ids, model_kwargs=self._kwargs, hook_name=self._hook_name,
            )  # fmt: skip
        self.n_tokens += losses[_NAMES[0]].numel()
        for name in _NAMES:
            self._sums[name] += float(losses[name].double().sum())

    def join_ranks(self) -> None:
        """Count what all ranks that share the evaluation predicted; they call this together."""
        sums = over_ranks.of_all((self.n_tokens, self._sums))
        self.n_tokens = sum(n for n, _ in sums)
        self._sums = {name: sum(each[name] for _, each in sums) for name in _NAMES}

    def metrics(self) -> dict[str, float | None]:
        """Return the three means, and `ce_loss_score`: the part of ablation's loss that the SAE recovers (1 is all)."""
        if self.n_tokens == 0:
            return {}
        means = {name: value / self.n_tokens for name, value in self._sums.items()}
        without, with_sae, ablated = (means[name] for name in _NAMES)
        return {**means, "ce_loss_score": None if ablated == without else (ablated - with_sae) / (ablated - without)}


@contextmanager
def _heads_joined_outside(sae: SAE[Any]) -> Generator[None]:
    """Keep the SAE from joining the heads of hook_z: SAELens does so itself before it asks the SAE."""
    if not sae.hook_z_reshaping_mode:
        yield
        return
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        sae.turn_on_forward_pass_hook_z_reshaping()
