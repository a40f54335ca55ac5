"""top-AFA: an SAE that picks the number of active features per token by matching norms (arXiv 2503.24277, section 5).

The rule itself is `sae_lens_afa.selection.norm_matching_topk`, the loss term `sae_lens_afa.functional.afa_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from sae_lens.saes.sae import SAE, SAEConfig, TrainCoefficientConfig, TrainingSAE, TrainingSAEConfig, TrainStepInput
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_afa import over_ranks
from sae_lens_afa.functional import afa_loss, sparsity_loss
from sae_lens_afa.saes._one_pass import NormMatchingSAE, NormMatchingTrainingSAE
from sae_lens_afa.saes._validation import check_choice, check_integer, check_number, check_shape_fields
from sae_lens_afa.selection import norm_matching_topk

__all__ = [
    "TopAFASAE",
    "TopAFASAEConfig",
    "TopAFATrainingSAE",
    "TopAFATrainingSAEConfig",
]

PAPER_AFA_COEFFICIENT = 1 / 32


class NormMatching(NamedTuple):
    """The rule: so many of the largest activations that their norm is nearest to `target_ratio` * ||x - b_dec||."""

    target_ratio: float

    def select(self, hidden_pre: Tensor, dense_norm: Tensor, decoder_norm: Tensor) -> Tensor:
        """Keep so many; see `SelectionRule`."""
        return norm_matching_topk(hidden_pre, self.target_ratio * dense_norm, decoder_norm)


@dataclass
class TopAFASAEConfig(SAEConfig):
    """Configuration of a `TopAFASAE`: the fields of every SAELens SAE and one more.

    Args:
        target_ratio: The norm to match, as a multiple of ||x - b_dec||; see `TopAFATrainingSAEConfig`.

    Raises:
        ValueError: `apply_b_dec_to_input=False`, a normalisation that changes the norms the rule compares, a ratio
            that is not positive, or a size below 1; the message names the field.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.TopAFASAEConfig(d_in=8, d_sae=32).target_ratio
        1.0
    """

    target_ratio: float = 1.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "top_afa"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "target_ratio", positive=True)


class TopAFASAE(NormMatchingSAE, SAE[TopAFASAEConfig]):
    """A trained top-AFA SAE: W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in], nothing else.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=8, d_sae=32))
        >>> x = torch.randn(5, 8)
        >>> feature_acts = sae.encode(x)
        >>> feature_acts.shape, sae.decode(feature_acts).shape
        (torch.Size([5, 32]), torch.Size([5, 8]))
    """

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        _initialize_as_reference(self)

    @override
    def selection_rule(self) -> NormMatching:
        return NormMatching(self.cfg.target_ratio)


@dataclass(kw_only=True)
class TopAFATrainingSAEConfig(TrainingSAEConfig):
    """Configuration for training a top-AFA SAE. There is no k: every token gets its own.

    Args:
        afa_coefficient: Weight of the AFA loss, in the paper's units (against an MSE that is a mean over
            features) whatever `loss_reduction`. 0 leaves the term out.
        afa_warm_up_steps: Steps over which that weight rises linearly from 0.
        sparsity_coefficient: Weight of `sae_lens_afa.functional.sparsity_loss`, in the same units: codes of the same
            norm in fewer features. 0, the paper's, leaves it out.
        sparsity_warm_up_steps: Steps over which that weight rises linearly from 0.
        aux_loss_coefficient: Weight of the loss that has dead latents reconstruct the residual, in the same units.
        k_aux: Most dead latents per token that take part in it.
        target_ratio: What norm to match, in the selection and in the loss, as a multiple of the dense norm. 1 is the
            paper's. Sparse codes leave part of the norm out (0.55 to 0.7 are usual): a lower ratio asks for fewer
            features.
        loss_reduction: "sum" over features, SAELens' scale: every term is d_in times the paper's.
            "mean": the paper's own.
        unit_norm_decoder: Keep decoder rows at norm 1 while training (see `sae_lens_afa.saes._unit_norm`).
        detach_aux_residual: Send no gradient of the auxiliary loss through the residual that the dead latents
            are to reconstruct. The reference implementation does not detach.
        normalize_activations: "layer_norm" gives every token ||x|| = sqrt(d_in - 1), so that a coefficient
            means the same for every model. "none" and "expected_average_only_in" work too.
        decoder_init_norm: None is the reference's initialisation (W_enc uniform within +-sqrt(6 / d_sae), W_dec
            its row-normalised transpose); a number is SAELens' heuristic, decoder rows of that norm.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.

    Example:
        >>> import sae_lens_afa as afa
        >>> cfg = afa.TopAFATrainingSAEConfig(d_in=768, d_sae=12288, target_ratio=0.7)
        >>> cfg.afa_coefficient, cfg.normalize_activations
        (0.03125, 'layer_norm')
    """

    afa_coefficient: float = PAPER_AFA_COEFFICIENT
    afa_warm_up_steps: int = 0
    sparsity_coefficient: float = 0.0
    sparsity_warm_up_steps: int = 0
    aux_loss_coefficient: float = 1 / 32
    k_aux: int = 512
    target_ratio: float = 1.0
    loss_reduction: Literal["sum", "mean"] = "sum"
    unit_norm_decoder: bool = True
    detach_aux_residual: bool = True
    decoder_init_norm: float | None = None
    normalize_activations: Literal["none", "expected_average_only_in", "layer_norm", "covariance_whitening"] = (
        "layer_norm"
    )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "top_afa"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "afa_coefficient")
        check_integer(self, "afa_warm_up_steps", at_least=0)
        check_number(self, "sparsity_coefficient")
        check_integer(self, "sparsity_warm_up_steps", at_least=0)
        check_number(self, "aux_loss_coefficient")
        check_integer(self, "k_aux", at_least=1)
        check_number(self, "target_ratio", positive=True)
        check_choice(self, "loss_reduction", ("sum", "mean"))
        if self.decoder_init_norm is not None:
            check_number(self, "decoder_init_norm", positive=True)

    @classmethod
    def paper(
        cls, *, d_in: int, d_sae: int, afa_coefficient: float = PAPER_AFA_COEFFICIENT, **overrides: Any
    ) -> TopAFATrainingSAEConfig:
        """Return the reference implementation's setting: losses as means over features, residual not detached.

        Args:
            d_in: Width of the activations.
            d_sae: Number of features; the paper's GPT-2 runs have 16 * d_in.
            afa_coefficient: The one hyperparameter that the paper varies (1/128 to 1/16).
            overrides: Any other field.

        Example:
            >>> import sae_lens_afa as afa
            >>> afa.TopAFATrainingSAEConfig.paper(d_in=768, d_sae=12288).loss_reduction
            'mean'
        """
        settings: dict[str, Any] = {"loss_reduction": "mean", "detach_aux_residual": False, **overrides}
        return cls(d_in=d_in, d_sae=d_sae, afa_coefficient=afa_coefficient, **settings)


class TopAFATrainingSAE(NormMatchingTrainingSAE, TrainingSAE[TopAFATrainingSAEConfig]):
    """top-AFA with its training loss; saved for inference as a `TopAFASAE`.

    All losses are taken in the space in which the SAE decodes, after input normalisation, so they mean the same
    for every model. `training_forward_pass` returns them, each already times its coefficient, as `mse_loss`,
    `afa_loss`, `auxiliary_reconstruction_loss` and, where it has a coefficient, `sparsity_loss`; `sae_out` is in the
    space of the raw input.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=8, d_sae=32))
        >>> sae.encode(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 32])
    """

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.decoder_init_norm is None:
            _initialize_as_reference(self)

    @property
    @override
    def holds_unit_norm(self) -> bool:
        return self.cfg.unit_norm_decoder

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        cfg = self.cfg
        coefficients = {"afa": TrainCoefficientConfig(cfg.afa_coefficient, cfg.afa_warm_up_steps)}
        if cfg.sparsity_coefficient > 0:
            coefficients["sparsity"] = TrainCoefficientConfig(cfg.sparsity_coefficient, cfg.sparsity_warm_up_steps)
        return {**coefficients}

    @override
    def selection_rule(self) -> NormMatching:
        return NormMatching(self.cfg.target_ratio)

    @property
    def _loss_scale(self) -> int:
        """Factor from the paper's means over features to the sums over features that SAELens logs and compares."""
        return self.cfg.d_in if self.cfg.loss_reduction == "sum" else 1

    @override
    def reconstruction_loss(self, x: Tensor, recons: Tensor) -> Tensor:
        return self._loss_scale * (recons - x).square().mean()

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        x, dead, residual = step_input.sae_in, step_input.dead_neuron_mask, step_input.sae_in - sae_out
        if self.cfg.detach_aux_residual:
            residual = residual.detach()
        aux_loss = residual.new_zeros(())
        if dead is not None and self.cfg.aux_loss_coefficient > 0:
            aux_loss = _dead_latent_loss(dead, feature_acts, hidden_pre, residual, self.W_dec, self.cfg.k_aux)
        afa = afa_loss(feature_acts, self.cfg.target_ratio * x)
        losses = {
            "afa_loss": step_input.coefficients["afa"] * self._loss_scale * afa,
            "auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * self._loss_scale * aux_loss,
        }
        if self.cfg.sparsity_coefficient > 0:
            spread = sparsity_loss(feature_acts, self.W_dec, x - self.b_dec)
            losses["sparsity_loss"] = step_input.coefficients["sparsity"] * self._loss_scale * spread
        return losses


def _initialize_as_reference(sae: SAE[Any]) -> None:
    """Set the AFA authors' weights: W_enc uniform within +-sqrt(6 / d_sae), W_dec its row-normalised transpose."""
    bound = (6 / sae.cfg.d_sae) ** 0.5
    nn.init.uniform_(sae.W_enc.data, -bound, bound)
    sae.W_dec.data = nn.functional.normalize(sae.W_enc.data.T, dim=-1).contiguous()


def _dead_latent_loss(
    dead: Bool[Tensor, " d_sae"],
    feature_acts: Float[Tensor, "*tokens d_sae"],
    hidden_pre: Float[Tensor, "*tokens d_sae"],
    residual: Float[Tensor, "*tokens d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """Return the mean squared error with which the k_aux largest dead latents of each token reconstruct the residual.

    The reference implementation's; 0 without dead latents.
    """
    index = dead.nonzero().squeeze(-1)
    if len(index) == 0:
        return residual.new_zeros(())
    # The trainer's mask is from before this batch: what fires now is not dead. Masked, and not left out of the
    # index: how many they are would be one more thing to wait for on an accelerator.
    still_dead = over_ranks.everywhere((feature_acts.detach()[..., index] <= 0).flatten(0, -2).all(0))
    acts = hidden_pre[..., index].relu() * still_dead
    if len(index) > k_aux:
        largest = acts.topk(k_aux, dim=-1, sorted=False)
        acts = torch.zeros_like(acts).scatter(-1, largest.indices, largest.values)
    return (acts @ W_dec[index] - residual).square().mean() * still_dead.any()
