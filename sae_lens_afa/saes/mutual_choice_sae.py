"""Mutual Choice: the M = k * B largest pre-activations of a batch of B tokens, whichever they are (arXiv 2411.02124).

The paper's text gives the budget and that there is no further constraint. That is what SAELens' BatchTopK does, so
this is a subclass of it, with the same parameters, threshold and saved form. What differs:

- The budget is rounded, where BatchTopK truncates k * B; equal values at the cut are matched lowest index first.
- The auxiliary loss is aux_zipf_loss: it also trains features that fire far less than a Zipf law of the densities
  expects (see `sae_lens_afa.saes.aux_zipf`). With `dying_fraction=0` it is BatchTopK's.
- The threshold starts from the first batch instead of from 0, so that it is right from the start.
- In eval mode a token's code does not depend on the batch: the tracked threshold decides, as it does in the saved
  model. In training mode the batch shares out its budget. It is as with batch normalisation.
- The auxiliary loss works under layer_norm, where SAELens' raises once a feature is dead.

These are this package's choices; the paper has no public implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_afa import over_ranks
from sae_lens_afa.saes._layer_norm import RememberedLayerNorm
from sae_lens_afa.saes._matching import (
    as_compared,
    finite_tokens,
    firing_counts,
    just_below,
    matches_of,
    mutual_choice,
    tokens_of_all,
)
from sae_lens_afa.saes._step import for_hooks, uncompiled
from sae_lens_afa.saes._validation import check_integer, check_layer_norm_width, check_number
from sae_lens_afa.saes.aux_zipf import DensityTracking, aux_zipf_loss

__all__ = [
    "MutualChoiceTrainingSAE",
    "MutualChoiceTrainingSAEConfig",
]

_NORMALIZATIONS = ("none", "expected_average_only_in", "layer_norm", "covariance_whitening")


@dataclass
class MutualChoiceTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """Configuration for training a Mutual Choice SAE; it is saved for inference as a JumpReLU SAE.

    Args:
        k: Average number of matches per token: a batch of B tokens has round(k * B).
        dying_fraction: A feature counts as under-used, and is trained on the residual, if its density is below this
            fraction of what the fitted Zipf law expects of its rank. 0: dead features only, as in SAELens.
        density_lr: Rate of the moving average of densities, from which the law is fitted every 1 / density_lr steps.
        aux_loss_coefficient: Weight of the auxiliary loss.
        topk_threshold_lr: Rate of the moving average of the threshold, from 1 / (number of batches) down to this.
        rescale_acts_by_decoder_norm: Choose by, and give, activations times the norms of the decoder rows.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.

    Example:
        >>> import sae_lens_afa as afa
        >>> cfg = afa.MutualChoiceTrainingSAEConfig(d_in=8, d_sae=32, k=4)
        >>> cfg.dying_fraction
        0.1
    """

    dying_fraction: float = 0.1
    density_lr: float = 0.01

    @override
    @classmethod
    def architecture(cls) -> str:
        return "mutual_choice"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "d_in", at_least=1)
        check_integer(self, "d_sae", at_least=1)
        check_number(self, "k", positive=True)
        if self.k > self.d_sae:
            default = type(self).__dataclass_fields__["k"].default
            default = ", which is the default where k is not given" if self.k == default else ""
            raise ValueError(
                f"{type(self).__name__}.k must be at most {self.d_sae}, got {self.k!r}{default}: give k, the average"
                f" number of active features per token, up to d_sae = {self.d_sae}."
            )
        check_number(self, "dying_fraction", at_most=1)
        check_number(self, "aux_loss_coefficient")
        check_number(self, "density_lr", positive=True, at_most=1)
        check_number(self, "topk_threshold_lr", positive=True, at_most=1)
        check_layer_norm_width(self)
        if self.use_sparse_activations:
            raise ValueError(f"{type(self).__name__}.use_sparse_activations must be False: activations are dense.")
        if self.normalize_activations not in _NORMALIZATIONS:
            raise ValueError(
                f"{type(self).__name__}.normalize_activations={self.normalize_activations!r} is not supported:"
                f" use one of {', '.join(map(repr, _NORMALIZATIONS))}."
            )


class MutualChoiceTrainingSAE(DensityTracking, RememberedLayerNorm, BatchTopKTrainingSAE):
    """Mutual Choice SAE: parameters of SAELens' BatchTopK, and the state of `DensityTracking`.

    In training mode a batch shares out its matches; in eval mode, and once saved, the tracked threshold decides.
    `training_forward_pass` adds to BatchTopK's metrics the number of matches that found no positive pre-activation
    (`unused_matches`), the number of features that are under-used but not dead, and the law.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.MutualChoiceTrainingSAE(afa.MutualChoiceTrainingSAEConfig(d_in=8, d_sae=32, k=4))
        >>> int((sae.encode(torch.randn(10, 8)) > 0).sum())
        40
    """

    cfg: MutualChoiceTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    _tracked = (*DensityTracking._tracked, "topk_threshold")

    def __init__(self, cfg: MutualChoiceTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._cut: Tensor | None = None
        self._under_used: Tensor | None = None

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return self.match

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return feature activations and pre-activations, each [..., d_sae], of raw activations."""
        feature_acts, hidden_pre = super().encode_with_hidden_pre(x)
        self.remember_code(feature_acts)
        return feature_acts, hidden_pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Return the reconstruction of `feature_acts` [..., d_sae]; under layer_norm see `AFASAE.decode`."""
        return self.decode_with_own_statistics(feature_acts, super().decode)

    def match(self, hidden_pre: Tensor) -> Tensor:
        """Return feature activations of pre-activations, both [..., d_sae], as the mode asks for."""
        if not self.training:
            return torch.where(as_compared(hidden_pre) < self.threshold, 0, hidden_pre)  # NaN stays visible
        acts, cut = self.share_out(hidden_pre)
        self._cut = cut.detach()
        return for_hooks(acts, self.hook_sae_acts_post)

    def share_out(self, hidden_pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch's matches, and the cut: see `sae_lens_afa.saes._matching`."""
        return mutual_choice(hidden_pre, self.budget(hidden_pre))

    def budget(self, hidden_pre: Tensor) -> int:
        """Return the number of matches that the batch has.

        Raises:
            ValueError: none, because it is too small.
        """
        n_tokens = over_ranks.n_tokens(hidden_pre)
        budget = round(self.cfg.k * n_tokens)
        if budget < 1:
            raise ValueError(
                f"a batch of {n_tokens} tokens has no matches at k = {self.cfg.k}: take larger batches, or call"
                " eval() on the SAE, with which codes do not depend on the batch."
            )
        return budget

    @property
    def threshold(self) -> Tensor:
        """Least activation that counts in eval mode, float32 [1] or [d_sae]: the cut of a batch is a match, too."""
        return self.topk_threshold.float().reshape(1)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self.training:
            return super().training_forward_pass(step_input)
        self.begin_step(step_input.n_training_steps)
        output = super().training_forward_pass(step_input)
        output.metrics["unused_matches"] = self._track(output.hidden_pre.detach(), output.feature_acts.detach())
        output.metrics["under_used_features"] = 0 if self._under_used is None else self._under_used.sum()
        if self.expected_by_rank() is not None:
            output.metrics |= {"zipf_exponent": self.zipf_law[0], "zipf_offset": self.zipf_law[1]}
        return output

    @uncompiled
    def begin_step(self, trainer_step: int) -> None:
        """Do what is due before a batch is encoded, at the step that the trainer says."""
        self.prepare(self.step_of(trainer_step))

    def prepare(self, step: int) -> None:
        """Do what is due before the batch of step `step`."""
        self.refit_law_if_due(step)

    @uncompiled
    def _track(self, hidden_pre: Tensor, feature_acts: Tensor) -> Tensor:
        """Take a batch into what is tracked, by its finite tokens; the matches that found no activation."""
        n_matches, n_tokens = self.budget(hidden_pre), over_ranks.n_tokens(hidden_pre)
        finite = finite_tokens(hidden_pre)
        if finite is not None:
            hidden_pre, feature_acts = hidden_pre[finite], feature_acts[finite]
        n_finite = tokens_of_all(hidden_pre)
        counts = over_ranks.summed(firing_counts(feature_acts))
        if n_finite > 0:
            self.end_step(hidden_pre, counts, n_finite)
        return matches_of(n_matches, n_finite, n_tokens) - counts.sum()

    @uncompiled
    def end_step(self, hidden_pre: Tensor, counts: Tensor, n_tokens: int) -> None:  # noqa: ARG002  (for subclasses)
        """Track a batch by its pre-activations [..., d_sae], and on how many of its tokens each feature fired."""
        self.observe_densities(counts, n_tokens)

    @override
    @uncompiled
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        if self.training and self._cut is not None:
            rate = max(self.cfg.topk_threshold_lr, 1 / (self.n_observed + 1))
            cut = self._cut.to(self.topk_threshold.dtype)
            # NaN is the cut of a batch without a finite token: it says nothing.
            self.topk_threshold.lerp_(torch.where(cut.isnan(), self.topk_threshold, cut), rate)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        # A JumpReLU's activation has to exceed its threshold.
        saved = state_dict["threshold"]
        state_dict["threshold"] = just_below(self.threshold, saved.dtype).expand_as(saved).contiguous()

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """Return aux_zipf_loss in the space of the raw input, where SAELens takes the MSE."""
        x, dead = step_input.sae_in, step_input.dead_neuron_mask
        self._under_used = self.under_used(dead)
        # Dead features as in SAELens; of those that are under-used no more than of those that are not.
        groups = ((dead, None), (self._under_used, math.ceil(self.cfg.k)))
        losses = [
            aux_zipf_loss(
                features,
                hidden_pre,
                (x - sae_out).detach(),
                self.W_dec,
                coefficient=self.cfg.aux_loss_coefficient,
                k_aux=k_aux,
                rescale_acts_by_decoder_norm=self.cfg.rescale_acts_by_decoder_norm,
                token_scale=x.std(-1, keepdim=True) if self.cfg.normalize_activations == "layer_norm" else None,
            )
            for features, k_aux in groups
        ]
        return {"auxiliary_reconstruction_loss": losses[0] + losses[1]}
