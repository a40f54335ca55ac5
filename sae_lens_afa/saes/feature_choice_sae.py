"""Feature Choice: each feature takes its best tokens of a batch, so many as its share of the budget (arXiv 2411.02124).

From the paper's text: a batch of B tokens has M = k * B matches; feature i has at most m_i of them, all features
alike or by a Zipf law of densities; aux_zipf_loss; a first phase of training as Mutual Choice.

This package's choices, since there is no public implementation:

- The law is Zipf-Mandelbrot, given or fitted to the densities of the first phase (`sae_lens_afa.saes.zipf`). Which
  feature has which rank follows the moving average of densities. In the second phase a feature's density is about
  what its rank allows, so ranks mostly stay as the first phase left them; started without one, they are the order of
  the features.
- m_i are whole numbers that sum to M exactly: at least 1 where M >= d_sae; with smaller batches features take turns
  (`allocate_matches`).
- Only positive pre-activations are matched. What a feature cannot use is not given to others: it is counted.
- Inference must not depend on the batch, so each feature has a threshold that is tracked while training and saved in
  a JumpReLU SAE. A moving average of the cuts would not do: fewer than m values exceed the expected value of the m-th
  of B (0.56 of them for m = 1 and an exponential tail), and it lags behind a changing SAE. The threshold is steered
  instead: it rises by a small factor when more tokens of a batch reach it than the feature is matched with, and falls
  when fewer do. So it settles where a feature fires as often at inference as in training, whether or not it uses all
  its matches, and also where it has less than one match per batch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_afa import over_ranks
from sae_lens_afa.saes._matching import feature_choice, finite_tokens, firing_counts, reached_counts, tokens_of_all
from sae_lens_afa.saes._step import uncompiled
from sae_lens_afa.saes._validation import check_choice, check_integer, check_number
from sae_lens_afa.saes.mutual_choice_sae import MutualChoiceTrainingSAE, MutualChoiceTrainingSAEConfig
from sae_lens_afa.saes.zipf import MIN_FEATURES, ZipfLaw, allocate_matches, expected_densities, fit_zipf

__all__ = [
    "FeatureChoiceTrainingSAE",
    "FeatureChoiceTrainingSAEConfig",
]

# The largest change of a threshold in one batch, in units of feature_threshold_lr.
_LARGEST_STEP = 10


@dataclass
class FeatureChoiceTrainingSAEConfig(MutualChoiceTrainingSAEConfig):
    """Configuration for training a Feature Choice SAE; it is saved for inference as a JumpReLU SAE.

    Args:
        k: Average number of matches per token: a batch of B tokens has round(k * B).
        prior: How features share the matches: "uniform", all alike, or "zipf", by a Zipf law.
        zipf_exponent: Exponent of that law; None fits it when Feature Choice starts, to the densities of the steps
            before; without any, to how Mutual Choice would share out the first batch, with a warning.
        zipf_offset: Its offset; None fits it, too, or takes 0 if there is nothing to fit it to.
        feature_choice_start_step: Training steps as Mutual Choice before Feature Choice starts. 0: from the first.
            A number of steps, because an SAE in SAELens' trainer does not know how many there will be.
        feature_threshold_lr: Factor by which a threshold moves in a batch, if twice the tokens reach it.
        dying_fraction: A feature counts as under-used, and is trained on the residual, if its density is below this
            fraction of what the law expects of its rank. 0: dead features only, as in SAELens.

    Raises:
        ValueError: a value outside its range; the message names the field and what to do.

    Example:
        >>> import sae_lens_afa as afa
        >>> cfg = afa.FeatureChoiceTrainingSAEConfig(d_in=8, d_sae=32, k=4, prior="zipf", zipf_exponent=1.0)
        >>> cfg.get_inference_config_class().architecture()
        'jumprelu'
    """

    prior: Literal["uniform", "zipf"] = "uniform"
    zipf_exponent: float | None = None
    zipf_offset: float | None = None
    feature_choice_start_step: int = 0
    feature_threshold_lr: float = 0.02

    @override
    @classmethod
    def architecture(cls) -> str:
        return "feature_choice"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_choice(self, "prior", ("uniform", "zipf"))
        check_integer(self, "feature_choice_start_step", at_least=0)
        check_number(self, "feature_threshold_lr", positive=True)
        if self.feature_threshold_lr > 1 / _LARGEST_STEP:
            raise ValueError(f"{name}.feature_threshold_lr must be at most 0.1, got {self.feature_threshold_lr!r}.")
        for field in ("zipf_exponent", "zipf_offset"):
            if getattr(self, field) is None:
                continue
            check_number(self, field)
            if self.prior != "zipf":
                raise ValueError(f"{name}.{field} is for prior='zipf', but prior is {self.prior!r}.")
        if self.fits_law and self.d_sae < MIN_FEATURES:
            raise ValueError(
                f"{name}.zipf_exponent and zipf_offset must be given for d_sae < {MIN_FEATURES}: no law can be fitted."
            )

    @property
    def fits_law(self) -> bool:
        """True if some of the law is fitted when Feature Choice starts; an offset alone only after a first phase."""
        if self.prior != "zipf":
            return False
        return self.zipf_exponent is None or (self.zipf_offset is None and self.feature_choice_start_step > 0)


class FeatureChoiceTrainingSAE(MutualChoiceTrainingSAE):
    """Feature Choice SAE, a Mutual Choice SAE until `feature_choice_start_step`.

    Attributes:
        feature_threshold: What a feature's activation has to reach in eval mode and once saved, [d_sae].
        n_choice_batches: Batches of Feature Choice so far. With the law, it says in which phase a resumed run is.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.FeatureChoiceTrainingSAE(afa.FeatureChoiceTrainingSAEConfig(d_in=8, d_sae=32, k=4))
        >>> sae.encode(torch.randn(10, 8)).shape
        torch.Size([10, 32])
    """

    cfg: FeatureChoiceTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    feature_threshold: Tensor
    n_choice_batches: Tensor
    _tracked = (*MutualChoiceTrainingSAE._tracked, "feature_threshold", "n_choice_batches")

    def __init__(self, cfg: FeatureChoiceTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        device = self.W_dec.device
        self.register_buffer("feature_threshold", torch.zeros(cfg.d_sae, dtype=torch.float32, device=device))
        self.register_buffer("n_choice_batches", torch.zeros((), dtype=torch.int64, device=device))
        # Derived from the buffers, as in DensityTracking.
        self._n_choice_batches: int | None = None
        self._choosing: bool | None = None
        self._fits_to_batch = False
        self._allocated: tuple[tuple[int, ...], Tensor] | None = None

    @property
    def choosing(self) -> bool:
        """True if features choose, rather than the batch as in Mutual Choice."""
        if self._choosing is None:
            self._choosing = self.cfg.feature_choice_start_step == 0 or self.turn > 0
        return self._choosing

    @property
    def turn(self) -> int:
        """Batches of Feature Choice so far."""
        if self._n_choice_batches is None:
            self._n_choice_batches = int(self.n_choice_batches)
        return self._n_choice_batches

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        if self.choosing:
            self._report_thresholds(output)
        return output

    @uncompiled
    def _report_thresholds(self, output: TrainStepOutput) -> None:
        """Log the thresholds in force instead of the first phase's, which stands still; computed only if logged."""
        del output.metrics["topk_threshold"]
        threshold = self.feature_threshold
        output.metrics |= {
            "feature_threshold_mean": threshold.mean,
            "feature_threshold_min": threshold.min,
            "feature_threshold_max": threshold.max,
        }

    @override
    def prepare(self, step: int) -> None:
        self._choosing = step >= self.cfg.feature_choice_start_step
        if not self._choosing:
            super().prepare(step)
        elif self.turn == 0:
            self._fits_to_batch = self.cfg.fits_law and self.n_observed == 0
            if not self._fits_to_batch:
                self.set_law(self._law(), self.cfg.k)

    @override
    def share_out(self, hidden_pre: Tensor) -> tuple[Tensor, Tensor]:
        if not self.choosing:
            return super().share_out(hidden_pre)
        if self._fits_to_batch:
            self._settle_law_by(hidden_pre)
        return feature_choice(hidden_pre, self._matches(hidden_pre.detach()))

    @uncompiled
    def _settle_law_by(self, hidden_pre: Tensor) -> None:
        warnings.warn(
            "Feature Choice starts without a phase to observe densities in: its Zipf law is fitted to the first batch,"
            " of an untrained SAE. Give feature_choice_start_step > 0, or zipf_exponent.",
            stacklevel=2,
        )
        self.set_law(self._law(hidden_pre), self.cfg.k)
        self._fits_to_batch = False

    def _law(self, hidden_pre: Tensor | None = None) -> ZipfLaw:
        """Return the law by which features share the matches: given, or fitted to the densities observed so far.

        Without any, it is fitted to how Mutual Choice would share out a batch, by its pre-activations.
        """
        cfg = self.cfg
        if not cfg.fits_law:
            return ZipfLaw(cfg.zipf_exponent or 0.0, cfg.zipf_offset or 0.0)
        density = self.density
        if self.n_observed == 0 and hidden_pre is not None:
            acts = super().share_out(hidden_pre.detach())[0]
            finite = finite_tokens(acts)
            acts = acts if finite is None else acts[finite]
            counts = over_ranks.summed(firing_counts(acts))
            density = (counts / max(1, tokens_of_all(acts))).to(density.dtype)
        return fit_zipf(density, exponent=cfg.zipf_exponent, offset=cfg.zipf_offset)

    @uncompiled
    def _matches(self, hidden_pre: Tensor) -> Tensor:
        """Return m_i, the matches of each feature in this batch, int64 [d_sae]."""
        n_matches, n_tokens = self.budget(hidden_pre), over_ranks.n_tokens(hidden_pre)
        turn = self.turn if n_matches < self.cfg.d_sae else 0
        expected = self.expected_by_rank()
        if expected is None:  # encoded before the first step, which settles the law
            expected = expected_densities(self._law(hidden_pre), self.cfg.d_sae, self.cfg.k)
            by_rank = allocate_matches(expected, n_matches, n_tokens, turn=turn).to(self.density.device)
        else:
            # With at least as many matches as features, all batches of one size share them out alike.
            key = (n_matches, n_tokens, turn)
            if self._allocated is None or self._allocated[0] != key:
                self._allocated = key, allocate_matches(expected, n_matches, n_tokens, turn=turn).to(expected.device)
            by_rank = self._allocated[1]
        if self.cfg.prior == "uniform":
            return by_rank
        return torch.empty_like(by_rank).scatter_(0, self.features_by_density(), by_rank)

    @override
    @uncompiled
    def end_step(self, hidden_pre: Tensor, counts: Tensor, n_tokens: int) -> None:
        super().end_step(hidden_pre, counts, n_tokens)
        if self.choosing:
            self._steer_thresholds(hidden_pre, counts, n_tokens)

    @torch.no_grad()
    def _steer_thresholds(self, hidden_pre: Tensor, counts: Tensor, n_tokens: int) -> None:
        """Move each threshold towards where it is reached as often as the feature is matched, which is `counts`."""
        assert self._cut is not None
        cut, threshold = self._cut.nan_to_num(posinf=0.0), self.feature_threshold
        if self.turn == 0:
            # A feature without a match in the first batch starts above all of it. A rank may have no token of it that
            # is finite.
            rows, none = hidden_pre.flatten(0, -2), torch.zeros_like(threshold)
            largest = over_ranks.largest(rows.amax(0).clamp(min=0).float() if len(rows) > 0 else none)
            largest = torch.nextafter(largest, torch.full_like(largest, torch.inf))
            self.feature_threshold = torch.where(self._cut.isinf(), largest, self._cut)
        else:
            excess = over_ranks.summed(reached_counts(hidden_pre, threshold)) - counts
            usual = (self.density * n_tokens).clamp(min=1)
            change = self.cfg.feature_threshold_lr * (excess / usual).clamp(-_LARGEST_STEP, _LARGEST_STEP)
            # From 0, where a factor moves nothing, by the same share of the cut.
            self.feature_threshold = threshold + change * torch.where(threshold > 0, threshold, cut)
        self._n_choice_batches = self.turn + 1
        self.n_choice_batches.fill_(self._n_choice_batches)

    @property
    @override
    def threshold(self) -> Tensor:
        return self.feature_threshold if self.choosing else super().threshold

    @override
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        if not self.choosing:
            super().update_topk_threshold(acts_topk)

    @override
    def drop_caches(self) -> None:
        super().drop_caches()
        self._n_choice_batches = self._choosing = self._allocated = None

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.rescale_acts_by_decoder_norm:
            # In units of hidden_pre * ||d_i||, as BatchTopK's threshold is.
            self.feature_threshold /= scaling_factor
