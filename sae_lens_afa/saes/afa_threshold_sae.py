"""The norm-relative threshold: an SAE that keeps what cannot be interference. No k, and no coefficient of sparsity.

    f_i = a_i  where  a_i ||d_i|| > c ||x - b_dec|| sqrt(2 ln(d_sae) / d_in),  else 0;   a = (x - b_dec) W_enc

with c = 1 from the premises of arXiv 2503.24277 (see `sae_lens_afa.functional.universal_threshold`), and a little less
by default. The rule adapts to each token, scales with its input and needs no sort. It is this package's, not the
paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from sae_lens.saes.sae import (
    SAE,
    SAEConfig,
    TrainCoefficientConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.functional import universal_threshold
from sae_lens_afa.saes import _initial
from sae_lens_afa.saes._base import NormMatchingSAE, NormMatchingTrainingSAE
from sae_lens_afa.saes._checks import check_choice, check_flag, check_integer, check_number, check_shape_fields
from sae_lens_afa.saes._reseed import reseed
from sae_lens_afa.saes._step import code
from sae_lens_afa.saes._tracked import uncompiled
from sae_lens_afa.saes.aux_zipf import aux_zipf_loss
from sae_lens_afa.selection import above_threshold

__all__ = [
    "AFAThresholdSAE",
    "AFAThresholdSAEConfig",
    "AFAThresholdTrainingSAE",
    "AFAThresholdTrainingSAEConfig",
]


class UniversalThreshold(NamedTuple):
    """The rule at one moment of training, or after it; `scale` is c."""

    scale: float
    d_in: int

    def threshold(self, dense_norm: Tensor, d_sae: int) -> Tensor:
        """Of tokens with these norms ||x - b_dec||."""
        return universal_threshold(dense_norm, self.d_in, d_sae, self.scale)

    def select(self, hidden_pre: Tensor, dense_norm: Tensor, decoder_norm: Tensor) -> Tensor:
        """See `SelectionRule`."""
        return above_threshold(hidden_pre, self.threshold(dense_norm, hidden_pre.shape[-1]), decoder_norm)


# sqrt(2 ln n) is the largest of n normal values in the limit; on average it is 0.86 of that for n = 512, 0.90 for
# 12,288. And c = 0.85 was best on the ground-truth benchmark (docs/afa_threshold.md).
DEFAULT_THRESHOLD_SCALE = 0.85


@dataclass
class AFAThresholdSAEConfig(SAEConfig):
    """Configuration of an `AFAThresholdSAE`: the fields of every SAELens SAE and one more.

    Args:
        threshold_scale: c, the threshold as a multiple of the universal one. 0 is a ReLU.

    Raises:
        ValueError: `apply_b_dec_to_input=False`, a normalisation that changes the norms the rule compares, a negative
            scale, or a size below 1; the message names the field.
    """

    threshold_scale: float = DEFAULT_THRESHOLD_SCALE

    @override
    @classmethod
    def architecture(cls) -> str:
        return "afa_threshold"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "threshold_scale")


class AFAThresholdSAE(NormMatchingSAE, SAE[AFAThresholdSAEConfig]):
    """A trained SAE of this kind: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in], nothing else."""

    @override
    def selection_rule(self) -> UniversalThreshold:
        return UniversalThreshold(self.cfg.threshold_scale, self.cfg.d_in)


@dataclass(kw_only=True)
class AFAThresholdTrainingSAEConfig(TrainingSAEConfig):
    """Configuration for training an `AFAThresholdSAE`. The defaults are meant for any data.

    Args:
        threshold_scale: c at the end of the warm-up and in the saved model. The lower, the denser are codes.
        threshold_start: c at the start, from which it rises linearly, as a share of `threshold_scale`.
        threshold_warm_up_steps: Steps over which it rises. 0: `threshold_scale` from the first step.
        reseed_steps: Every so many steps, the latents that the trainer counts as dead take the directions of what badly
            reconstructed tokens lack (see `sae_lens_afa.saes._reseed`). 0: never.
        aux_loss_coefficient: Weight of the loss of SAELens' TopK, by which dead latents reconstruct the residual.
        k_aux: Most dead latents per token that take part in it. None: d_in // 2, as in SAELens.
        unit_norm_decoder: Keep decoder rows at norm 1 while training (see `sae_lens_afa.saes._unit_norm`).
        decoder_init_norm: None: decoder rows of norm 1, W_enc their transpose. A number: rows of that norm.
        b_dec_init: "mean": b_dec starts as the mean of the first training batch. "zeros": it starts as 0.
        normalize_activations: With "layer_norm" every token counts alike in the loss, whatever its norm, as it does in
            the rule. "none" and "expected_average_only_in" work, too.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.
    """

    threshold_scale: float = DEFAULT_THRESHOLD_SCALE
    threshold_start: float = 0.5
    threshold_warm_up_steps: int = 1000
    reseed_steps: int = 100
    aux_loss_coefficient: float = 0.0
    k_aux: int | None = None
    unit_norm_decoder: bool = True
    decoder_init_norm: float | None = None
    b_dec_init: Literal["zeros", "mean"] = "mean"
    normalize_activations: Literal["none", "expected_average_only_in", "layer_norm", "covariance_whitening"] = (
        "layer_norm"
    )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "afa_threshold"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "threshold_scale", positive=True)
        check_number(self, "threshold_start", at_most=1)
        check_integer(self, "threshold_warm_up_steps", at_least=0)
        check_integer(self, "reseed_steps", at_least=0)
        check_number(self, "aux_loss_coefficient")
        check_choice(self, "b_dec_init", ("zeros", "mean"))
        check_flag(self, "unit_norm_decoder")
        if self.k_aux is not None:
            check_integer(self, "k_aux", at_least=1)
        if self.decoder_init_norm is not None:
            check_number(self, "decoder_init_norm", positive=True)


class AFAThresholdTrainingSAE(NormMatchingTrainingSAE, TrainingSAE[AFAThresholdTrainingSAEConfig]):
    """The norm-relative threshold in training; saved for inference as an `AFAThresholdSAE`.

    A training step selects with the c of that step; `encode` and `forward` always with the one that it rises to, as
    the saved model will. Losses are taken in the space in which the SAE decodes, in SAELens' scale (summed over
    features): `mse_loss` and `auxiliary_reconstruction_loss`, which is already times its coefficient.
    """

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.decoder_init_norm is None:
            _initial.unit_rows(self)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """ "threshold" is how far c has risen: 0 at its start, 1 at `threshold_scale`."""
        return {"threshold": TrainCoefficientConfig(1.0, self.cfg.threshold_warm_up_steps)}

    @override
    def selection_rule(self) -> UniversalThreshold:
        return self.rule_at(1.0)

    def rule_at(self, progress: float) -> UniversalThreshold:
        """The rule when c has risen so far, from 0 to 1."""
        share = progress + (1 - progress) * self.cfg.threshold_start
        return UniversalThreshold(share * self.cfg.threshold_scale, self.cfg.d_in)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.keep_unit_norm()
        x = self.normalized_input(step_input.sae_in)
        if self.training:
            self._prepare(x.detach(), step_input.n_training_steps)
        rule = self.rule_at(step_input.coefficients["threshold"])
        if self._reseeding_is_due(step_input):
            self._reseed(x.detach(), step_input.dead_neuron_mask, rule)
        feature_acts, hidden_pre, decoded = code(self, x, rule)
        self.remember_code(feature_acts)
        recons = self.hook_sae_recons(decoded + self.b_dec)
        mse_loss = (recons - x).square().sum(-1).mean()
        aux_loss = self._dead_latent_loss(step_input.dead_neuron_mask, hidden_pre, x - recons)
        metrics: dict[str, Any] = {}
        if step_input.is_logging_step:
            metrics = self.norm_metrics(x, feature_acts) | {"afa_threshold_scale": rule.scale}
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head),
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=mse_loss + aux_loss,
            losses={"mse_loss": mse_loss, "auxiliary_reconstruction_loss": aux_loss},
            metrics=metrics,
        )

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """The term beside the MSE; `step_input.sae_in` and `sae_out` are in the SAE's normalised space."""
        loss = self._dead_latent_loss(step_input.dead_neuron_mask, hidden_pre, step_input.sae_in - sae_out)
        return {"auxiliary_reconstruction_loss": loss}

    def _dead_latent_loss(self, dead: Tensor | None, hidden_pre: Tensor, residual: Tensor) -> Tensor:
        weight, k_aux = self.cfg.aux_loss_coefficient, self.cfg.k_aux
        return aux_zipf_loss(dead, hidden_pre, residual.detach(), self.W_dec, coefficient=weight, k_aux=k_aux)

    @uncompiled
    @torch.no_grad()
    def _prepare(self, x: Tensor, step: int) -> None:
        """What the first batch of a run gives."""
        # Of an SAE that was trained before, b_dec is not exactly 0.
        if step == 0 and self.cfg.b_dec_init == "mean" and not bool(self.b_dec.any()):
            _initial.bias_from_mean(self, x)

    def _reseeding_is_due(self, step_input: TrainStepInput) -> bool:
        every, step = self.cfg.reseed_steps, step_input.n_training_steps
        return self.training and every > 0 and step > 0 and step % every == 0

    @uncompiled
    @torch.no_grad()
    def _reseed(self, x: Tensor, dead: Tensor | None, rule: UniversalThreshold) -> None:
        """Dead latents to where this batch lacks something; needs its codes beforehand, and so a forward pass more."""
        if dead is None or not bool(dead.any()):
            return
        feature_acts, _, decoded = code(self, x, rule)
        x_centered = x - self.b_dec
        threshold = rule.threshold(torch.linalg.vector_norm(x_centered, dim=-1), self.cfg.d_sae)
        reseed(self, dead, feature_acts, x_centered - decoded, threshold)
