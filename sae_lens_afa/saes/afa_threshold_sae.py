"""The norm-relative threshold: an SAE that keeps what cannot be interference. No k, and no coefficient of sparsity.

    f_i = a_i  where  a_i ||d_i|| > c ||x - b_dec|| sqrt(2 ln(d_sae) / d_in),  else 0;   a = (x - b_dec) W_enc

with c = 1 from the premises of arXiv 2503.24277 (see `sae_lens_afa.functional.universal_threshold`). The rule adapts
to each token, scales with its input and needs no sort. It is this package's, not the paper's.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
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
from sae_lens_afa.saes._dead_latents import dead_latent_loss
from sae_lens_afa.saes._reseed import reseed
from sae_lens_afa.saes._step import code
from sae_lens_afa.saes._tracked import TrackedState, uncompiled
from sae_lens_afa.saes.aux_zipf import aux_zipf_loss
from sae_lens_afa.selection import above_threshold

# The coherence changes as slowly as the weights: measured every so many steps, averaged at this rate.
_MEASURE_EVERY, _COHERENCE_RATE = 16, 0.1


class UniversalThreshold(NamedTuple):
    """The rule at one moment: c (`scale`, a number or a scalar tensor), and the window of its mask's gradient."""

    scale: float | Tensor
    d_in: int
    straight_through: float = 0.0

    @property
    def constant_mask(self) -> bool:
        """Whether the mask is a constant for the gradient, see `SelectionRule`."""
        return self.straight_through == 0

    def threshold(self, dense_norm: Tensor, d_sae: int) -> Tensor:
        """Of tokens with these norms ||x - b_dec||."""
        return universal_threshold(dense_norm, self.d_in, d_sae, self.scale)

    def select(self, hidden_pre: Tensor, dense_norm: Tensor, decoder_norm: Tensor) -> Tensor:
        """See `SelectionRule`."""
        threshold = self.threshold(dense_norm, hidden_pre.shape[-1])
        return above_threshold(hidden_pre, threshold, decoder_norm, straight_through=self.straight_through)


@dataclass
class AFAThresholdSAEConfig(SAEConfig):
    """Configuration of an `AFAThresholdSAE`: the fields of every SAELens SAE and one more.

    Args:
        threshold_scale: c, the threshold as a multiple of the universal one. 0, which is a ReLU, is what the coherence
            of an orthogonal dictionary makes of it.

    Raises:
        ValueError: `apply_b_dec_to_input=False`, a normalisation that changes the norms the rule compares, a negative
            scale, or a size below 1; the message names the field.
    """

    threshold_scale: float = 1.0

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
        threshold_scale: c at the end of the warm-up and in the saved model. Below 1 codes are denser.
        threshold_start: c at the start, from which it rises linearly, as a share of `threshold_scale`.
        threshold_warm_up_steps: Steps over which it rises. 0: `threshold_scale` from the first step.
        straight_through: Width of the window around the threshold, as a share of it, in which the mask has the
            rectangle kernel of JumpReLU for its derivative. 0: the mask is a constant for the gradient.
        measured_coherence: Take the root mean square overlap of the decoder's rows for the 1 / sqrt(d_in) of the rule,
            which it is for directions spread evenly. The saved model has it in its `threshold_scale`.
        reseed_steps: Every so many steps, the latents that the trainer counts as dead take the directions of what badly
            reconstructed tokens lack (see `sae_lens_afa.saes._reseed`). 0: never.
        aux_loss: What has dead latents reconstruct the residual: "topk" is the loss of SAELens' TopK, "reference" that
            of the AFA authors, summed over features, too.
        aux_loss_coefficient: Weight of that loss.
        k_aux: Most dead latents per token that take part in it. None: d_in // 2, as in SAELens.
        unit_norm_decoder: Keep decoder rows at norm 1 while training (see `sae_lens_afa.saes._unit_norm`).
        decoder_init_norm: None: decoder rows of norm 1, W_enc their transpose. A number: rows of that norm.
        b_dec_init: "mean": b_dec starts as the mean of the first training batch. "zeros": it starts as 0.
        init_from_data: Decoder rows start as directions of centred tokens of the first batch.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.
    """

    threshold_scale: float = 1.0
    threshold_start: float = 0.5
    threshold_warm_up_steps: int = 1000
    straight_through: float = 0.0
    measured_coherence: bool = False
    reseed_steps: int = 100
    aux_loss: Literal["topk", "reference"] = "topk"
    aux_loss_coefficient: float = 0.0
    k_aux: int | None = None
    unit_norm_decoder: bool = True
    decoder_init_norm: float | None = None
    b_dec_init: Literal["zeros", "mean"] = "mean"
    init_from_data: bool = False

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
        check_number(self, "straight_through", at_most=2)
        check_choice(self, "aux_loss", ("topk", "reference"))
        check_number(self, "aux_loss_coefficient")
        check_choice(self, "b_dec_init", ("zeros", "mean"))
        for field in ("measured_coherence", "unit_norm_decoder", "init_from_data"):
            check_flag(self, field)
        if self.k_aux is not None:
            check_integer(self, "k_aux", at_least=1)
        if self.decoder_init_norm is not None:
            check_number(self, "decoder_init_norm", positive=True)
        if self.init_from_data and self.decoder_init_norm is not None:
            raise ValueError(
                f"{type(self).__name__}.decoder_init_norm must be None with init_from_data=True, whose rows have norm"
                f" 1, got {self.decoder_init_norm}."
            )


class AFAThresholdTrainingSAE(TrackedState, NormMatchingTrainingSAE, TrainingSAE[AFAThresholdTrainingSAEConfig]):
    """The norm-relative threshold in training; saved for inference as an `AFAThresholdSAE`.

    A training step selects with the c of that step; `encode` and `forward` always with the one that it rises to, as
    the saved model will. Losses are taken in the space in which the SAE decodes, in SAELens' scale (summed over
    features): `mse_loss` and `auxiliary_reconstruction_loss`, which is already times its coefficient.

    Attributes:
        coherence: With `measured_coherence`, a moving average of the root mean square overlap of decoder rows.
    """

    coherence: Tensor

    def __init__(self, cfg: AFAThresholdTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if cfg.measured_coherence:
            self._tracked = ("coherence",)
            self.register_buffer("coherence", torch.full((), cfg.d_in**-0.5, device=self.W_dec.device))

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
        return UniversalThreshold(self.effective_scale(), self.cfg.d_in, self.cfg.straight_through)

    def effective_scale(self, progress: float = 1.0) -> float | Tensor:
        """c of the rule at some progress of the warm-up; a scalar tensor where the coherence is measured."""
        scale = self.cfg.threshold_scale * (progress + (1 - progress) * self.cfg.threshold_start)
        if not self.cfg.measured_coherence:
            return scale
        accurate = torch.float32 if self.coherence.device.type == "mps" else torch.float64
        return self.coherence.to(accurate) * (scale * math.sqrt(self.cfg.d_in))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = self.normalized_input(step_input.sae_in)
        if self.training:
            self._prepare(x.detach(), step_input.n_training_steps)
        scale = self.effective_scale(step_input.coefficients["threshold"])
        rule = UniversalThreshold(scale, self.cfg.d_in, self.cfg.straight_through)
        if self._reseeding_is_due(step_input):
            self._reseed(x.detach(), step_input.dead_neuron_mask, rule)
        feature_acts, hidden_pre, decoded = code(self, x, rule)
        recons = self.hook_sae_recons(decoded + self.b_dec)
        mse_loss = (recons - x).square().sum(-1).mean()
        aux_loss = self._dead_latent_loss(step_input.dead_neuron_mask, feature_acts, hidden_pre, x - recons)
        metrics: dict[str, Any] = {}
        if step_input.is_logging_step:
            metrics = self.norm_metrics(x, feature_acts) | {"afa_threshold_scale": scale}
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
        residual = step_input.sae_in - sae_out
        loss = self._dead_latent_loss(step_input.dead_neuron_mask, feature_acts, hidden_pre, residual)
        return {"auxiliary_reconstruction_loss": loss}

    def _dead_latent_loss(
        self, dead: Tensor | None, feature_acts: Tensor, hidden_pre: Tensor, residual: Tensor
    ) -> Tensor:
        residual, weight = residual.detach(), self.cfg.aux_loss_coefficient
        if self.cfg.aux_loss == "topk" or dead is None or weight == 0:
            return aux_zipf_loss(dead, hidden_pre, residual, self.W_dec, coefficient=weight, k_aux=self.cfg.k_aux)
        k_aux = max(1, self.cfg.d_in // 2) if self.cfg.k_aux is None else self.cfg.k_aux
        return weight * self.cfg.d_in * dead_latent_loss(dead, feature_acts, hidden_pre, residual, self.W_dec, k_aux)

    @uncompiled
    @torch.no_grad()
    def _prepare(self, x: Tensor, step: int) -> None:
        """What is due before the batch of this step: the start from data, and the coherence."""
        # Of an SAE that was trained before, b_dec is not exactly 0.
        if step == 0 and not bool(self.b_dec.any()):
            if self.cfg.b_dec_init == "mean":
                _initial.bias_from_mean(self, x)
            if self.cfg.init_from_data:
                _initial.rows_from_data(self, x)
        if self.cfg.measured_coherence and step % _MEASURE_EVERY == 0:
            self.coherence.lerp_(_initial.mean_square_overlap(self.W_dec).sqrt(), 1.0 if step == 0 else _COHERENCE_RATE)

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

    @property
    def inference_cfg(self) -> AFAThresholdTrainingSAEConfig:
        """The configuration from which the saved model's is taken: with the measured coherence in its scale."""
        cfg = copy.copy(self.cfg)
        cfg.threshold_scale = float(self.effective_scale())
        return cfg

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        cfg = self.cfg
        self.cfg = self.inference_cfg
        try:
            return super().save_inference_model(path)
        finally:
            self.cfg = cfg
