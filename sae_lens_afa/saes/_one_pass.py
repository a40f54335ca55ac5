"""Base classes of the architectures with an encoder: one pass, then a selection that compares norms."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.saes._base import AFASAE, AFATrainingSAE
from sae_lens_afa.saes._step import (
    SelectionRule,
    StepCode,
    decoder_norm,
    dense_norm,
    for_hooks,
    fused_step,
    pre_activations,
    times_decoder,
)


class NormMatchingSAE(AFASAE, SAE[Any]):
    """An SAE with parameters W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in] that compares norms.

    A base beside SAELens' own, for inference and training classes alike.
    """

    @abstractmethod
    def selection_rule(self) -> SelectionRule:
        """Return the rule of the trained SAE, by which features are active."""
        ...

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Return feature activations [..., d_sae] of raw activations [..., d_in] (hook_z: [..., heads, d_head])."""
        hidden_pre, *norms = self._selectable(self.normalized_input(x))
        feature_acts = self._observable(self.selection_rule().select(hidden_pre, *norms))
        self.remember_code(feature_acts)
        return feature_acts

    def _selectable(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a normalised input as far as the selection: pre-activations, dense norms, decoder norms."""
        hidden_pre = self.hook_sae_acts_pre(pre_activations(x, self.b_dec, self.W_enc))
        return hidden_pre, dense_norm(x - self.b_dec), decoder_norm(self.W_dec)

    def _observable(self, selected: Tensor) -> Tensor:
        """Pass the selected activations by their hook point."""
        return self.hook_sae_acts_post(for_hooks(selected, self.hook_sae_acts_post))

    @override
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W_enc": (self.cfg.d_in, self.cfg.d_sae), **super().weight_shapes()}


class NormMatchingTrainingSAE(NormMatchingSAE, AFATrainingSAE, TrainingSAE[Any]):
    """The training form: encode, select and decode as one step where nobody looks at the parts."""

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return feature activations and pre-activations (before the ReLU, unscaled), each [..., d_sae]."""
        hidden_pre, *norms = self._selectable(self.normalized_input(x))
        feature_acts = self._observable(self.selection_rule().select(hidden_pre, *norms))
        self.remember_code(feature_acts)
        return feature_acts, hidden_pre

    @override
    def _selectable(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.begin_loose_pass()
        return super()._selectable(x)

    @override
    def rule_at(self, step_input: TrainStepInput) -> SelectionRule:
        return self.selection_rule()

    @override
    def code(self, x: Tensor, rule: SelectionRule) -> StepCode:
        if self.goes_in_one_step():
            return fused_step(x, self.b_dec, self.W_enc, self.W_dec, rule)
        hidden_pre, *norms = self._selectable(x)
        feature_acts = self._observable(rule.select(hidden_pre, *norms))
        return StepCode(feature_acts, hidden_pre, times_decoder(feature_acts, self.W_dec))
