"""Pursuit by stages: an SAE that takes a token apart until what is left over looks like no feature. No k, no encoder.

A stage adds the features that stand out from the residual by the universal threshold, and fits the values of all active
ones by least squares; `sae_lens_afa.selection.pursuit` has the rule. `afa_threshold` compares each feature with the
whole token, and so misses those that come together with stronger ones; here they are compared with what the stronger
ones leave over. The rule is this package's, not the paper's.

A code is the least-squares fit on its features, so the gradient of the squared error by way of the code is zero (the
envelope theorem): the dictionary learns from sum over tokens of f r^T alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import SAE, SAEConfig, TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_afa import over_ranks
from sae_lens_afa.functional import universal_ratio
from sae_lens_afa.saes._base import AFASAE
from sae_lens_afa.saes._pursuit_step import correlations, pursuit_step
from sae_lens_afa.saes._reseed import ReseedingConfig, ReseedingTrainingSAE
from sae_lens_afa.saes._step import StepCode, for_hooks, times_decoder, uncompiled
from sae_lens_afa.saes._validation import check_integer, check_number, check_shape_fields
from sae_lens_afa.selection import PursuitRule, pursue

__all__ = [
    "AFAPursuitSAE",
    "AFAPursuitSAEConfig",
    "AFAPursuitTrainingSAE",
    "AFAPursuitTrainingSAEConfig",
]


# Share of the latents that a dictionary starts with, and how often it grows on its way to all of them.
_SEED, _GROWTHS = 1 / 16, 40
# Over which part of a run it grows, or over how many steps where the run's length is not known.
_GROWTH_SHARE, _GROWTH_STEPS = 0.4, 1000


@dataclass(kw_only=True)
class _RuleConfig(SAEConfig):
    """The fields of the rule, which training and inference share."""

    threshold_scale: float = 1.0
    norm_floor: float = 0.1
    weak_selection: float = 0.9
    max_stages: int = 64

    @override
    @classmethod
    def architecture(cls) -> str:
        return "afa_pursuit"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "norm_floor", at_most=1)
        check_number(self, "weak_selection", positive=True, at_most=1)
        check_integer(self, "max_stages", at_least=1)


@dataclass
class AFAPursuitSAEConfig(_RuleConfig):
    """Configuration of an `AFAPursuitSAE`: the fields of every SAELens SAE, and those of the rule.

    Args:
        threshold_scale: c, the threshold as a multiple of the universal one of the residual.
        norm_floor: Share of the token's norm, or of the data's typical norm, below which the residual's norm lowers
            the threshold no further.
        weak_selection: Share of the largest correlation that a feature needs to join together with it; 1: one by one.
        max_stages: Looks at all features after which a token is left as it is.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.AFAPursuitSAEConfig(d_in=8, d_sae=32).threshold_scale
        1.0
    """

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "threshold_scale")


class _Pursuing(AFASAE, SAE[Any]):
    """The pursuit, for training and inference: its tensors, and how it encodes."""

    typical_norm: Tensor

    @property
    def W_enc(self) -> Tensor:  # noqa: N802  # pyright: ignore[reportIncompatibleVariableOverride]
        """The decoder's transpose [d_in, d_sae]: what gives the correlations of the first stage."""
        return self.W_dec.T

    @override
    def initialize_weights(self) -> None:
        b_dec = torch.zeros(self.cfg.d_in, dtype=self.dtype, device=self.device)
        self.b_dec = nn.Parameter(b_dec)
        # Column by column: synthetic data of the same seed mostly begins with the same numbers, row by row, and a
        # dictionary that starts as the answer would look as if it had been found.
        columns = torch.randn_like(b_dec[:, None].expand(-1, self.cfg.d_sae))
        self.W_dec = nn.Parameter(nn.functional.normalize(columns.T, dim=-1).contiguous())
        self.register_buffer("typical_norm", b_dec.new_zeros(()))

    def pursuit_rule(self) -> PursuitRule:
        """Return the rule of the trained SAE, by which features are active."""
        return self._rule(self.cfg.threshold_scale)

    def _rule(self, threshold_scale: float) -> PursuitRule:
        cfg = self.cfg
        unit = universal_ratio(cfg.d_in, cfg.d_sae, threshold_scale)
        return PursuitRule(unit, cfg.norm_floor, cfg.weak_selection, cfg.max_stages)

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Return feature activations [..., d_sae] of raw activations [..., d_in] (hook_z: [..., heads, d_head])."""
        return self._encode(self.normalized_input(x), self.pursuit_rule())[0]

    def _encode(self, x: Tensor, rule: PursuitRule) -> tuple[Tensor, Tensor]:
        """Return the codes of a normalised input, and the correlations of its first stage."""
        x_centered = x - self.b_dec
        hidden_pre = self.hook_sae_acts_pre(correlations(x_centered, self.W_dec))
        codes = pursue(x_centered, self.W_dec, hidden_pre, rule, self.typical_norm)
        feature_acts = self.hook_sae_acts_post(for_hooks(codes, self.hook_sae_acts_post))
        self.remember_code(feature_acts)
        return feature_acts, hidden_pre

    @override
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().weight_shapes(), "typical_norm": ()}

    @torch.no_grad()
    @override
    def fold_and_get_W_dec_norm(self) -> Tensor:
        norm = torch.linalg.vector_norm(self.W_dec, dim=-1).clamp(min=torch.finfo(self.dtype).tiny)
        self.W_dec.div_(norm[:, None])  # values are the fit's, and follow
        return norm

    @torch.no_grad()
    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        for tensor in (self.W_dec, self.b_dec, self.typical_norm):
            tensor.div_(scaling_factor)
        self.cfg.normalize_activations = "none"


class AFAPursuitSAE(_Pursuing, SAE[AFAPursuitSAEConfig]):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A trained SAE of this kind: W_dec [d_sae, d_in], b_dec [d_in], and the data's typical norm ||x - b_dec|| [].

    There is no encoder; `W_enc` is the transpose of W_dec, for those who look for it.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.AFAPursuitSAE(afa.AFAPursuitSAEConfig(d_in=8, d_sae=32))
        >>> sae.encode(torch.randn(5, 8)).shape
        torch.Size([5, 32])
    """


@dataclass(kw_only=True)
class AFAPursuitTrainingSAEConfig(_RuleConfig, ReseedingConfig):
    """Configuration for training an `AFAPursuitSAE`. The defaults are meant for any data.

    Args:
        threshold_scale: As in `AFAPursuitSAEConfig`. The lower, the denser are codes.
        norm_floor: As in `AFAPursuitSAEConfig`.
        weak_selection: As in `AFAPursuitSAEConfig`.
        max_stages: As in `AFAPursuitSAEConfig`.
        growth_steps: Steps over which the dictionary grows from a sixteenth of its latents to all: new ones take the
            directions of what those before them leave over. None: two fifths of the run, where the runner says how
            long it is (`set_for_run`: this package's and sweeps do), else 1,000. 0: all from the start.
        reseed_steps: Every so many steps, the latents that the trainer counts as dead take the directions of what badly
            reconstructed tokens lack (see `sae_lens_afa.saes._reseed`). 0: never.
        decoder_init_norm: None or 1: decoder rows start, as they stay, at norm 1.

    Raises:
        ValueError: a value outside its range; the message names the field and what it may be.

    Example:
        >>> import sae_lens_afa as afa
        >>> cfg = afa.AFAPursuitTrainingSAEConfig(d_in=768, d_sae=12288)
        >>> cfg.threshold_scale, cfg.normalize_activations
        (1.0, 'none')
    """

    growth_steps: int | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.growth_steps is not None:
            check_integer(self, "growth_steps", at_least=0)

    def set_for_run(self, steps: int) -> None:
        """Set what is not given and depends on how many steps a run has: how long the dictionary grows."""
        if self.growth_steps is None:
            self.growth_steps = int(_GROWTH_SHARE * steps)


class AFAPursuitTrainingSAE(  # pyright: ignore[reportIncompatibleVariableOverride]
    _Pursuing, ReseedingTrainingSAE, TrainingSAE[AFAPursuitTrainingSAEConfig]
):
    """The pursuit in training; saved for inference as an `AFAPursuitSAE`.

    The one loss, `mse_loss`, weighs each token by 1 / (variance of its entries): in SAELens' scale, as if every token
    had been standardised, and without a state that decoding would need. b_dec starts as the mean of the first batch,
    weighed in the same way, and the typical norm is that batch's. Latents that the dictionary has not grown to yet are
    rows of zeros, which are never active.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.AFAPursuitTrainingSAE(afa.AFAPursuitTrainingSAEConfig(d_in=8, d_sae=32))
        >>> sae.encode(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 32])
    """

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return feature activations and the correlations of the first stage, each [..., d_sae]."""
        self.begin_loose_pass()
        return self._encode(self.normalized_input(x), self.pursuit_rule())

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    @override
    def rule_at(self, step_input: TrainStepInput) -> PursuitRule:
        return self.pursuit_rule()

    @override
    def token_threshold(self, dense_norm: Tensor, rule: PursuitRule) -> Tensor:
        return rule.threshold * dense_norm

    @override
    def code(self, x: Tensor, rule: PursuitRule) -> StepCode:
        if self.goes_in_one_step():
            return pursuit_step(x - self.b_dec, self.W_dec, rule, self.typical_norm)
        feature_acts, hidden_pre = self._encode(x, rule)
        return StepCode(feature_acts, hidden_pre, times_decoder(feature_acts, self.W_dec))

    @override
    def reconstruction_loss(self, x: Tensor, recons: Tensor) -> Tensor:
        """Return the squared error summed over features, weighed by token, mean over tokens."""
        return ((recons - x).square().sum(-1) * token_weight(x)).mean()

    @override
    def start_from(self, rows: Tensor, *, is_new: bool) -> None:
        """Set b_dec to the weighed mean of these tokens, the typical norm to theirs, and the dictionary to its seed."""
        if is_new:
            weight = token_weight(rows)[:, None]
            total = weight.sum()
            self.b_dec.copy_((weight * rows).sum(0) / torch.where(total > 0, total, 1))
            self.W_dec[self._size_at(0) :] = 0
        if not bool(self.typical_norm):
            self.typical_norm.copy_(torch.linalg.vector_norm(rows - self.b_dec, dim=-1).mean())

    @property
    def _growth_steps(self) -> int:
        return _GROWTH_STEPS if self.cfg.growth_steps is None else self.cfg.growth_steps

    def _size_at(self, step: int) -> int:
        """Return how many latents the dictionary is to have at a step."""
        grown = min(1.0, step / self._growth_steps) if self._growth_steps > 0 else 1.0
        return math.ceil(self.cfg.d_sae * (_SEED + (1 - _SEED) * grown))

    @uncompiled
    @torch.no_grad()
    @override
    def latents_to_place(self, step_input: TrainStepInput) -> Tensor | None:
        """Return the latents that are due by the growth of the dictionary, and from time to time the dead ones."""
        dead, step = super().latents_to_place(step_input), step_input.n_training_steps
        if self._growth_steps == 0 or (dead is None and step % max(1, self._growth_steps // _GROWTHS) != 0):
            return dead
        unborn = ~(self.W_dec != 0).any(-1)
        due = unborn & (unborn.cumsum(0) <= self._size_at(step) - (~unborn).sum())
        return due if dead is None else due | (dead & ~unborn)


def token_weight(x: Tensor) -> Tensor:
    """Return 1 / variance of the entries of each token [..., d_in]; 0 where there is next to none, as in padding."""
    variance = x.detach().var(-1) if x.shape[-1] > 1 else x.detach().square().squeeze(-1)
    return torch.where(variance > 1e-6 * over_ranks.averaged(variance.mean()), 1 / variance, 0)
