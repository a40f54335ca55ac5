"""Dead latents put where the reconstruction fails, and the training of those architectures that do so.

An auxiliary loss draws dead latents, step by step, towards the mean of what is lacking. Where codes are sparse, what a
token lacks is mostly one feature that no latent stands for: a dead latent that takes its direction is of use at once.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig, TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_lens_afa import over_ranks
from sae_lens_afa.saes._base import AFATrainingSAE
from sae_lens_afa.saes._step import uncompiled
from sae_lens_afa.saes._validation import check_integer, check_number, check_shape_fields


@dataclass(kw_only=True)
class ReseedingConfig(TrainingSAEConfig):
    """The fields of training that architectures with a universal threshold share; see those for what they mean."""

    threshold_scale: float = 1.0
    reseed_steps: int = 100
    decoder_init_norm: float | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_shape_fields(self)
        check_number(self, "threshold_scale", positive=True)
        check_integer(self, "reseed_steps", at_least=0)
        if self.decoder_init_norm not in (None, 1):
            raise ValueError(
                f"{type(self).__name__}.decoder_init_norm must be None or 1, got {self.decoder_init_norm!r}: decoder"
                " rows are of norm 1 throughout."
            )


class ReseedingTrainingSAE(AFATrainingSAE, TrainingSAE[Any]):
    """A training SAE that starts from its first batch and puts latents where a batch lacks something."""

    @abstractmethod
    def token_threshold(self, dense_norm: Tensor, rule: Any) -> Tensor:
        """Return what a feature of a token of this norm ||x - b_dec|| has to exceed when nothing else is active."""
        ...

    def latents_to_place(self, step_input: TrainStepInput) -> Tensor | None:
        """Return which latents [d_sae] may be put elsewhere at this step: every `reseed_steps` the dead ones."""
        every = self.cfg.reseed_steps
        return step_input.dead_neuron_mask if every > 0 and step_input.n_training_steps % every == 0 else None

    @override
    def begin_step(self, x: Tensor, step_input: TrainStepInput) -> None:
        if not self.training:
            return
        if step_input.n_training_steps == 0:
            self._start_from(x)
        elif (latents := self.latents_to_place(step_input)) is not None:
            self._reseed(x, latents, self.rule_at(step_input))

    @uncompiled
    @torch.no_grad()
    def _start_from(self, x: Tensor) -> None:
        """Start a run from its first batch; tokens that are not finite have no part in it."""
        rows = over_ranks.gathered(x.reshape(-1, x.shape[-1]))
        rows = rows[rows.isfinite().all(-1)].to(torch.promote_types(x.dtype, torch.float32))
        if len(rows) > 0:
            # Of an SAE that was trained before, b_dec is not exactly 0.
            self.start_from(rows, is_new=not bool(self.b_dec.any()))

    def start_from(self, rows: Tensor, *, is_new: bool) -> None:
        """Set b_dec to the mean of these tokens [tokens, d_in], if the SAE is new."""
        if is_new:
            self.b_dec.copy_(rows.mean(0))

    @uncompiled
    @torch.no_grad()
    def _reseed(self, x: Tensor, latents: Tensor, rule: Any) -> None:
        """Put latents where this batch lacks something; needs its codes beforehand, and so a forward pass more."""
        if not bool(latents.any()):
            return
        x = over_ranks.gathered(x)
        feature_acts, _, decoded = self.code(x, rule)
        x_centered = x - self.b_dec
        threshold = self.token_threshold(torch.linalg.vector_norm(x_centered, dim=-1), rule)
        reseed(self, latents, feature_acts, x_centered - decoded, threshold)


@torch.no_grad()
def reseed(
    sae: TrainingSAE[Any],
    dead: Bool[Tensor, " d_sae"],
    feature_acts: Float[Tensor, "*tokens d_sae"],
    residual: Float[Tensor, "*tokens d_in"],
    threshold: Float[Tensor, "*tokens"],
) -> None:
    """Give dead latents the directions of residuals, in place: W_dec's rows keep their norms, W_enc is in step.

    Tokens are drawn in proportion to their squared residual, without replacement, from those whose residual would pass
    the threshold itself; what is below it is no feature by the rule. A direction that would fire on the token of one
    drawn before it is left out: latents that all take up the same lack would together add it many times over. So some
    of the dead latents stay as they are.

    Args:
        sae: An SAE with parameters W_enc [d_in, d_sae] and W_dec [d_sae, d_in].
        dead: Latents that have not fired for long. One that is active in this batch is left alone.
        feature_acts: Codes of a batch.
        residual: What they leave over.
        threshold: Least activation times decoder norm with which a feature is kept on each token.
    """
    residual = residual.flatten(0, -2)
    lacking = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.promote_types(residual.dtype, torch.float32))
    chosen = lacking.isfinite() & (lacking > threshold.flatten())
    latents = (dead & ~(feature_acts > 0).flatten(0, -2).any(0)).nonzero().squeeze(-1)
    count = min(len(latents), int(chosen.sum()))
    if count == 0:
        return
    latents = latents[torch.randperm(len(latents), device=latents.device)[:count]]
    tokens = torch.multinomial(torch.where(chosen, lacking.square(), 0), count)
    directions = (residual[tokens] / lacking[tokens, None]).to(sae.W_dec.dtype)
    # Row i: what each direction would get of token i's residual; columns: only those drawn after i.
    shared = (residual[tokens].to(directions.dtype) @ directions.T > threshold.flatten()[tokens, None]).triu(1).any(0)
    latents, directions = latents[~shared], directions[~shared]
    norms = torch.linalg.vector_norm(sae.W_dec[latents], dim=-1, keepdim=True)
    norms = torch.where(norms > 0, norms, 1)
    sae.W_dec[latents] = directions * norms
    if "W_enc" in dict(sae.named_parameters()):  # and not the transpose of W_dec
        sae.W_enc[:, latents] = (directions / norms).T
