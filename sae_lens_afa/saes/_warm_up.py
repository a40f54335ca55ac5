"""Training of the architectures with a universal threshold: it rises, dead latents are reseeded, b_dec has a start."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainingSAEConfig, TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.saes._base import AFATrainingSAE
from sae_lens_afa.saes._reseed import reseed
from sae_lens_afa.saes._step import uncompiled
from sae_lens_afa.saes._validation import check_integer, check_number, check_shape_fields


@dataclass(kw_only=True)
class ThresholdTrainingConfig(TrainingSAEConfig):
    """The fields of training of an architecture that has a `threshold_scale`; see those for what they mean."""

    threshold_scale: float = 1.0
    threshold_start: float = 0.5
    threshold_warm_up_steps: int = 1000
    reseed_steps: int = 100
    decoder_init_norm: float | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "threshold_scale", positive=True)
        check_number(self, "threshold_start", at_most=1)
        check_integer(self, "threshold_warm_up_steps", at_least=0)
        check_integer(self, "reseed_steps", at_least=0)
        if self.decoder_init_norm not in (None, 1):
            raise ValueError(
                f"{type(self).__name__}.decoder_init_norm must be None or 1, got {self.decoder_init_norm!r}: decoder"
                " rows are of norm 1 throughout."
            )


class ThresholdTrainingSAE(AFATrainingSAE, TrainingSAE[Any]):
    """A training SAE whose threshold rises to its `threshold_scale`, and whose dead latents are reseeded."""

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """Return, as "threshold", how far c has risen: 0 at its start, 1 at `threshold_scale`."""
        return {"threshold": TrainCoefficientConfig(1.0, self.cfg.threshold_warm_up_steps)}

    def threshold_scale_at(self, step_input: TrainStepInput) -> float:
        """Return c at this step of training."""
        progress = step_input.coefficients["threshold"]
        return self.cfg.threshold_scale * (progress + (1 - progress) * self.cfg.threshold_start)

    @abstractmethod
    def token_threshold(self, dense_norm: Tensor, rule: Any) -> Tensor:
        """Return what a feature of a token of this norm ||x - b_dec|| has to exceed when nothing else is active."""
        ...

    @override
    def begin_step(self, x: Tensor, step_input: TrainStepInput) -> None:
        if not self.training:
            return
        every, step = self.cfg.reseed_steps, step_input.n_training_steps
        if step == 0:
            self._start_from(x)
        elif every > 0 and step % every == 0 and step_input.dead_neuron_mask is not None:
            self._reseed(x, step_input.dead_neuron_mask, self.rule_at(step_input))

    @uncompiled
    @torch.no_grad()
    def _start_from(self, x: Tensor) -> None:
        """Start a run from its first batch; tokens that are not finite have no part in it."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows[rows.isfinite().all(-1)].to(torch.promote_types(x.dtype, torch.float32))
        if len(rows) > 0:
            self.start_from(rows)

    def start_from(self, rows: Tensor) -> None:
        """Set b_dec to the mean of these tokens [tokens, d_in]; not that of an SAE that was trained before."""
        # Of an SAE that was trained before, b_dec is not exactly 0.
        if not bool(self.b_dec.any()):
            self.b_dec.copy_(rows.mean(0))

    @uncompiled
    @torch.no_grad()
    def _reseed(self, x: Tensor, dead: Tensor, rule: Any) -> None:
        """Put dead latents where this batch lacks something; needs its codes beforehand, and so a forward pass more."""
        if not bool(dead.any()):
            return
        feature_acts, _, decoded = self.code(x, rule)
        x_centered = x - self.b_dec
        threshold = self.token_threshold(torch.linalg.vector_norm(x_centered, dim=-1), rule)
        reseed(self, dead, feature_acts, x_centered - decoded, threshold)
