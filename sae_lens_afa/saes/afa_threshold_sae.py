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
from sae_lens.saes.sae import SAE, SAEConfig, TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_afa.functional import universal_threshold
from sae_lens_afa.saes._one_pass import NormMatchingSAE, NormMatchingTrainingSAE
from sae_lens_afa.saes._reseed import ReseedingConfig, ReseedingTrainingSAE
from sae_lens_afa.saes._validation import check_integer, check_number, check_shape_fields
from sae_lens_afa.selection import above_threshold

__all__ = [
    "AFAThresholdSAE",
    "AFAThresholdSAEConfig",
    "AFAThresholdTrainingSAE",
    "AFAThresholdTrainingSAEConfig",
]


class UniversalThreshold(NamedTuple):
    """The selection rule at one moment of training, or after it; `scale` is c."""

    scale: float
    d_in: int

    def threshold(self, dense_norm: Tensor, d_sae: int) -> Tensor:
        """Return the thresholds of tokens with these norms ||x - b_dec||."""
        return universal_threshold(dense_norm, self.d_in, d_sae, self.scale)

    def select(self, hidden_pre: Tensor, dense_norm: Tensor, decoder_norm: Tensor) -> Tensor:
        """Keep what exceeds the threshold; see `SelectionRule`."""
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

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.AFAThresholdSAEConfig(d_in=8, d_sae=32).threshold_scale
        0.85
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
    """A trained SAE of this kind: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in], nothing else.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.AFAThresholdSAE(afa.AFAThresholdSAEConfig(d_in=8, d_sae=32))
        >>> sae.encode(torch.randn(5, 8)).shape
        torch.Size([5, 32])
    """

    @override
    def selection_rule(self) -> UniversalThreshold:
        return UniversalThreshold(self.cfg.threshold_scale, self.cfg.d_in)


@dataclass(kw_only=True)
class AFAThresholdTrainingSAEConfig(ReseedingConfig):
    """Configuration for training an `AFAThresholdSAE`. The defaults are meant for any data.

    Args:
        threshold_scale: c at the end of the warm-up and in the saved model. The lower, the denser are codes.
        threshold_start: c at the start, from which it rises linearly, as a share of `threshold_scale`.
        threshold_warm_up_steps: Steps over which it rises. 0: `threshold_scale` from the first step.
        reseed_steps: Every so many steps, the latents that the trainer counts as dead take the directions of what badly
            reconstructed tokens lack (see `sae_lens_afa.saes._reseed`). 0: never.
        decoder_init_norm: None or 1: decoder rows start, as they stay, at norm 1, W_enc as their transpose.
        normalize_activations: With "layer_norm" every token counts alike in the loss, whatever its norm, as it does in
            the rule. "none" and "expected_average_only_in" work, too.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.

    Example:
        >>> import sae_lens_afa as afa
        >>> cfg = afa.AFAThresholdTrainingSAEConfig(d_in=768, d_sae=12288)
        >>> cfg.threshold_scale, cfg.reseed_steps
        (0.85, 100)
    """

    threshold_scale: float = DEFAULT_THRESHOLD_SCALE
    threshold_start: float = 0.5
    threshold_warm_up_steps: int = 1000
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
        check_number(self, "threshold_start", at_most=1)
        check_integer(self, "threshold_warm_up_steps", at_least=0)


class AFAThresholdTrainingSAE(
    NormMatchingTrainingSAE, ReseedingTrainingSAE, TrainingSAE[AFAThresholdTrainingSAEConfig]
):
    """The norm-relative threshold in training; saved for inference as an `AFAThresholdSAE`.

    A training step selects with the c of that step; `encode` and `forward` always with the one that it rises to, as
    the saved model will. The one loss, `mse_loss`, is taken in the space in which the SAE decodes, in SAELens' scale
    (summed over features). b_dec starts as the mean of the first batch.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.AFAThresholdTrainingSAE(afa.AFAThresholdTrainingSAEConfig(d_in=8, d_sae=32))
        >>> sae.encode(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 32])
    """

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.W_dec.data = nn.functional.normalize(self.W_dec.data, dim=-1)
        self.W_enc.data = self.W_dec.data.T.clone(memory_format=torch.contiguous_format)

    @override
    def selection_rule(self) -> UniversalThreshold:
        return UniversalThreshold(self.cfg.threshold_scale, self.cfg.d_in)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """Return, as "threshold", how far c has risen: 0 at its start, 1 at `threshold_scale`."""
        return {"threshold": TrainCoefficientConfig(1.0, self.cfg.threshold_warm_up_steps)}

    @override
    def rule_at(self, step_input: TrainStepInput) -> UniversalThreshold:
        progress = step_input.coefficients["threshold"]
        share = progress + (1 - progress) * self.cfg.threshold_start
        return UniversalThreshold(share * self.cfg.threshold_scale, self.cfg.d_in)

    @override
    def token_threshold(self, dense_norm: Tensor, rule: UniversalThreshold) -> Tensor:
        return rule.threshold(dense_norm, self.cfg.d_sae)

    @override
    def step_metrics(self, x: Tensor, feature_acts: Tensor, rule: UniversalThreshold) -> dict[str, Any]:
        return super().step_metrics(x, feature_acts, rule) | {"afa_threshold_scale": rule.scale}
