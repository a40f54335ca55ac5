"""SAEs with what did not earn its place in `afa_threshold`, for `benchmarks.threshold_variants`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import register_sae_training_class
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class, register_sae_class
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_afa import AFAThresholdSAE, AFAThresholdSAEConfig, AFAThresholdTrainingSAE, AFAThresholdTrainingSAEConfig
from sae_lens_afa.experiments.ground_truth import made
from sae_lens_afa.functional import universal_threshold
from sae_lens_afa.saes import _initial
from sae_lens_afa.saes._dead_latents import dead_latent_loss
from sae_lens_afa.saes._reseed import reseed
from sae_lens_afa.saes.afa_threshold_sae import UniversalThreshold


@dataclass(kw_only=True)
class VariantConfig(AFAThresholdTrainingSAEConfig):
    """Of a `Variant`; each field is off by default.

    Args:
        straight_through: Width of the window around the threshold, as a share of it, in which the mask has the
            derivative of a ramp of that width: JumpReLU's rectangle kernel.
        soft_mask: Width of a sigmoid, as a share of the threshold, in place of the step while training.
        soft_threshold: Step at which the threshold is no longer subtracted from what passes it; until then less and
            less of it is. Donoho and Johnstone's soft threshold, becoming the hard one.
        measured_coherence: The root mean square overlap of the decoder's rows in place of 1 / sqrt(d_in).
        rows_from_data: Decoder rows start as directions of centred tokens of the first batch.
        rows_from_world: Decoder rows start as the true features of this world.
        reference_aux: Weight of the AFA authors' auxiliary loss of dead latents.
    """

    straight_through: float = 0.0
    soft_mask: float = 0.0
    soft_threshold: int = 0
    measured_coherence: bool = False
    rows_from_data: bool = False
    rows_from_world: str = ""
    reference_aux: float = 0.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "afa_threshold_variant"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return AFAThresholdSAEConfig


@dataclass
class Masked:
    """The rule with another gradient, or another size of what passes."""

    rule: UniversalThreshold
    cfg: VariantConfig
    shrinkage: float = 0.0

    @property
    def scale(self) -> float:
        """c."""
        return self.rule.scale

    def threshold(self, dense_norm: Tensor, d_sae: int) -> Tensor:
        """See `UniversalThreshold`."""
        return self.rule.threshold(dense_norm, d_sae)

    def select(self, hidden_pre: Tensor, dense_norm: Tensor, decoder_norm: Tensor) -> Tensor:
        """See `SelectionRule`."""
        threshold = self.threshold(dense_norm, hidden_pre.shape[-1]).to(hidden_pre.dtype)[..., None]
        scaled = hidden_pre * decoder_norm
        mask = (scaled > threshold).to(hidden_pre.dtype)
        if self.cfg.soft_mask > 0:
            mask = torch.sigmoid((scaled - threshold) / (self.cfg.soft_mask * threshold).clamp(min=1e-12))
        if self.cfg.straight_through > 0:
            window = self.cfg.straight_through * threshold
            near = (scaled - threshold).abs() < window / 2
            ramp = torch.where(near, (scaled - threshold) / window, 0)
            mask = mask + ramp - ramp.detach()
        return mask * (hidden_pre - self.shrinkage * threshold / decoder_norm)


class Variant(AFAThresholdTrainingSAE):
    """`AFAThresholdTrainingSAE` with what was tried; saved as an `AFAThresholdSAE`."""

    cfg: VariantConfig

    def __init__(self, cfg: VariantConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.coherence, self.step = cfg.d_in**-0.5, 0
        # Where a hook looks on, the step is left to autograd, and the rule may have any gradient.
        self.hook_sae_acts_pre.register_forward_hook(lambda *_: None)

    @override
    def rule_at(self, progress: float) -> Any:
        rule = super().rule_at(progress)
        if self.cfg.measured_coherence:
            rule = rule._replace(scale=rule.scale * self.coherence * math.sqrt(self.cfg.d_in))
        if not self.training:
            return rule
        shrinkage = max(0.0, 1 - self.step / self.cfg.soft_threshold) if self.cfg.soft_threshold else 0.0
        return Masked(rule, self.cfg, shrinkage)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.step = step_input.n_training_steps
        if self.step == 0:
            self._start(step_input.sae_in)
        if self.cfg.measured_coherence and self.step % 16 == 0:
            self.coherence += (1.0 if self.step == 0 else 0.1) * (rms_overlap(self.W_dec) - self.coherence)
        out = super().training_forward_pass(step_input)
        dead, weight = step_input.dead_neuron_mask, self.cfg.reference_aux
        if weight > 0 and dead is not None:
            residual, k = (step_input.sae_in - out.sae_out).detach(), max(1, self.cfg.d_in // 2)
            aux = dead_latent_loss(dead, out.feature_acts, out.hidden_pre, residual, self.W_dec, k)
            out.loss = out.loss + weight * self.cfg.d_in * aux
        return out

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        rows = None
        if self.cfg.rows_from_data:
            rows = (x - x.mean(0))[torch.randint(len(x), (self.cfg.d_sae,))]
        if self.cfg.rows_from_world:
            rows = made(self.cfg.rows_from_world).feature_dict.feature_vectors
        if rows is not None:
            self.W_dec.copy_(rows)
            _initial.unit_rows(self)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        own, self.cfg.threshold_scale = self.cfg.threshold_scale, self.eval().rule_at(1.0).scale
        try:
            return super().save_inference_model(path)
        finally:
            self.cfg.threshold_scale = own


def rms_overlap(W_dec: Tensor) -> float:
    """Root mean square of <d_i, d_j> over all i != j."""
    rows = nn.functional.normalize(W_dec.detach(), dim=-1)
    n = len(rows)
    return float((((rows.T @ rows).square().sum() - n) / (n * (n - 1))).sqrt())


class Biased:
    """The rule on pre-activations with an encoder bias."""

    def __init__(self, rule: UniversalThreshold, b_enc: Tensor) -> None:
        self.rule, self.b_enc, self.scale = rule, b_enc, rule.scale
        self.threshold = rule.threshold

    def select(self, hidden_pre: Tensor, dense_norm: Tensor, decoder_norm: Tensor) -> Tensor:
        """See `SelectionRule`."""
        return self.rule.select(hidden_pre + self.b_enc, dense_norm, decoder_norm)


class BiasedSAEConfig(AFAThresholdSAEConfig):
    """Of a `BiasedSAE`."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "afa_threshold_biased"


class EncoderBias(SAE[Any]):
    """The parameter b_enc [d_sae], which starts as 0; a base beside SAELens' own."""

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))


class BiasedSAE(EncoderBias, AFAThresholdSAE):
    """`AFAThresholdSAE` with an encoder bias."""

    @override
    def selection_rule(self) -> Any:
        return Biased(super().selection_rule(), self.b_enc)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        b_enc = state_dict.pop("b_enc")
        super().process_state_dict_for_loading(state_dict)
        state_dict["b_enc"] = b_enc


class BiasedTrainingSAEConfig(AFAThresholdTrainingSAEConfig):
    """Of a `BiasedTrainingSAE`."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "afa_threshold_biased"


class BiasedTrainingSAE(EncoderBias, AFAThresholdTrainingSAE):
    """`AFAThresholdTrainingSAE` with an encoder bias."""

    def __init__(self, cfg: BiasedTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.hook_sae_acts_pre.register_forward_hook(lambda *_: None)  # as in `Variant`

    @override
    def rule_at(self, progress: float) -> Any:
        return Biased(super().rule_at(progress), self.b_enc)


def register_reseeded(architecture: str) -> None:
    """An architecture of SAELens whose dead latents are reseeded as those of `afa_threshold` are, every 100 steps."""
    sae_class: Any
    sae_class, config_class = get_sae_training_class(architecture)

    class Reseeded(sae_class):
        @override
        def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
            step, dead = step_input.n_training_steps, step_input.dead_neuron_mask
            if step > 0 and step % 100 == 0 and dead is not None and bool(dead.any()):
                with torch.no_grad():
                    x = step_input.sae_in
                    acts, _ = self.encode_with_hidden_pre(x)
                    norm = torch.linalg.vector_norm(x - self.b_dec, dim=-1)
                    threshold = universal_threshold(norm, self.cfg.d_in, self.cfg.d_sae)
                    reseed(self, dead, acts.to_dense() if acts.is_sparse else acts, x - self.decode(acts), threshold)
            return super().training_forward_pass(step_input)

    class ReseededConfig(config_class):
        @override
        @classmethod
        def architecture(cls) -> str:
            return f"{architecture}_reseeded"

        @override
        def get_inference_config_class(self) -> type[SAEConfig]:
            return config_class.get_inference_config_class(config_class(d_in=1, d_sae=1))

    training_class: type[TrainingSAE[Any]] = Reseeded
    register_sae_training_class(f"{architecture}_reseeded", training_class, ReseededConfig)


def register() -> None:
    """Make the variants known to SAELens, once."""
    if "afa_threshold_variant" in SAE_TRAINING_CLASS_REGISTRY:
        return
    register_sae_training_class("afa_threshold_variant", Variant, VariantConfig)
    register_sae_class("afa_threshold_biased", BiasedSAE, BiasedSAEConfig)
    register_sae_training_class("afa_threshold_biased", BiasedTrainingSAE, BiasedTrainingSAEConfig)
    for architecture in ("topk", "batchtopk", "jumprelu"):
        register_reseeded(architecture)
