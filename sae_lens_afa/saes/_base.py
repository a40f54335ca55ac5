"""Base classes of the AFA architectures: what they check, how they decode, and one template for training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_afa import _transforms
from sae_lens_afa.functional import epsilon_lbo, feature_norm
from sae_lens_afa.saes._layer_norm import RememberedLayerNorm
from sae_lens_afa.saes._step import StepCode, is_observed, times_decoder, uncompiled
from sae_lens_afa.saes._unit_norm import arm_once_trained, arm_unit_norm, forget_seen
from sae_lens_afa.saes._validation import check_activations, check_state_dict


class AFASAE(RememberedLayerNorm, SAE[Any]):
    """An SAE with parameters W_dec [d_sae, d_in] and b_dec [d_in], and those of its encoder if it has one.

    A base beside SAELens' own, for inference and training classes alike. A token's code depends on that token
    alone, so any leading dimensions will do.
    """

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Return the reconstruction of `feature_acts` [..., d_sae], in the shape and space of the raw activations.

        Under layer_norm this needs the mean and standard deviation of each token, which a code does not hold: the SAE
        keeps them. A tensor that `encode` returned is decoded with its own as long as you hold it, edited in place
        or not, any number of times, and also when other batches were encoded since. Any other tensor (a copy, an
        edited clone) is decoded with those of the batch that was encoded last. So a copy of the code of an earlier
        batch of the same shape comes out wrong, and nothing can tell: decode it before you encode another batch.

        Raises:
            ValueError: the last axis is not d_sae; or under layer_norm, nothing was encoded, or the last batch had
                another leading shape.
        """
        return self.decode_with_own_statistics(feature_acts, self._decode)

    def _decode(self, feature_acts: Tensor) -> Tensor:
        recons = self.hook_sae_recons(times_decoder(feature_acts, self.W_dec) + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head)

    def normalized_input(self, sae_in: Tensor) -> Tensor:
        """Return raw activations as the SAE decodes them: heads joined, normalised, not centred; [..., d_in].

        Raises:
            TypeError: `sae_in` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        check_activations(sae_in, self.cfg.d_in, heads=self.hook_z_reshaping_mode)
        # In the weights' dtype, which `sae.half()` changes and SAELens' `sae.dtype` does not follow.
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.W_dec.dtype)))
        return self.run_time_activation_norm_fn_in(x)

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        return self.normalized_input(sae_in) - self.b_dec

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        expected = self.weight_shapes()
        beside = set(self._buffers) - set(expected)
        weights = {name: tensor for name, tensor in state_dict.items() if name not in beside}
        check_state_dict(weights, expected)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the tensors that a saved SAE has."""
        return {"W_dec": (self.cfg.d_sae, self.cfg.d_in), "b_dec": (self.cfg.d_in,)}

    @override
    def fold_activation_whitening(
        self, mean: torch.Tensor, whitening_matrix: torch.Tensor, unwhitening_matrix: torch.Tensor
    ) -> None:
        raise NotImplementedError(
            f"{self.cfg.architecture()} cannot absorb a whitening: it would change the norms by which features are"
            " selected. Train with normalize_activations='layer_norm' or 'none'."
        )


class AFATrainingSAE(AFASAE, TrainingSAE[Any]):
    """The training form: a template of the step, the decoder constraint, and metrics of how norms match."""

    # Of the SAE and not of its W_dec, so that a deep copy has them: whether somebody said that it is trained, and
    # whether its weights are from elsewhere, with rows of any norm.
    _is_trained = False
    _is_new = True

    # ---- a training step

    @abstractmethod
    def rule_at(self, step_input: TrainStepInput) -> Any:
        """Return the rule at this step of training, by which features are active."""
        ...

    @abstractmethod
    def code(self, x: Tensor, rule: Any) -> StepCode:
        """Encode, select by `rule` and decode a normalised input, in parts only where somebody looks at them."""
        ...

    def goes_in_one_step(self) -> bool:
        """Tell whether a step may encode and decode as one: nobody looks at the parts, compiles or transforms them."""
        observed = is_observed(self.hook_sae_acts_pre) or is_observed(self.hook_sae_acts_post)
        return not (torch.compiler.is_compiling() or _transforms.at_work() or observed)

    def begin_step(self, x: Tensor, step_input: TrainStepInput) -> None:
        """Do what is due before a batch is encoded; `x` is the batch, normalised and without gradient."""

    def reconstruction_loss(self, x: Tensor, recons: Tensor) -> Tensor:
        """Return the squared error in SAELens' scale: summed over features, mean over tokens."""
        return (recons - x).square().sum(-1).mean()

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms beside the MSE; `step_input.sae_in` and `sae_out` are in the SAE's normalised space."""
        return {}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.keep_unit_norm()
        x = self.normalized_input(step_input.sae_in)
        self.begin_step(x.detach(), step_input)
        rule = self.rule_at(step_input)
        feature_acts, hidden_pre, decoded = self.code(x, rule)
        self.remember_code(feature_acts)
        recons = self.hook_sae_recons(decoded + self.b_dec)
        losses = {"mse_loss": self.reconstruction_loss(x, recons)}
        losses |= self.calculate_aux_loss(replace(step_input, sae_in=x), feature_acts, hidden_pre, recons)
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=self.reshape_fn_out(self.run_time_activation_norm_fn_out(recons), self.d_head),
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics=self.step_metrics(x, feature_acts, rule) if step_input.is_logging_step else {},
        )

    @torch.no_grad()
    def step_metrics(self, x: Tensor, feature_acts: Tensor, rule: Any) -> dict[str, Any]:  # noqa: ARG002
        """Measure how well norms match on this batch, in the paper's form (the bias as a feature, x un-centred).

        Tokens that are not finite are left out and counted: their codes are all of d_sae wide, and say nothing.
        """
        dense, features = torch.linalg.vector_norm(x, dim=-1), feature_norm(feature_acts, self.W_dec, self.b_dec)
        finite = dense.isfinite() & features.isfinite()
        # Masked by NaN, and not left out by index: how many there are would be something to wait for on a device.
        dense, features = dense.where(finite, torch.nan), features.where(finite, torch.nan)
        l0 = torch.count_nonzero(feature_acts, dim=-1).to(torch.float32).where(finite, torch.nan)
        return {
            "afa_norm_ratio": (features / dense).nanmedian(),
            "afa_epsilon_lbo": epsilon_lbo(dense, features, self.cfg.d_sae).nanmedian(),
            "afa_frac_over_activated": (features > dense).sum() / finite.sum(),
            "l0_std": (l0 - l0.nanmean()).square().nanmean().sqrt(),
            "n_nonfinite": (~finite).sum(),
        }

    # ---- the decoder constraint

    @property
    def holds_unit_norm(self) -> bool:
        """True where decoder rows are kept at norm 1 while training."""
        return True

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and self.holds_unit_norm:
            self._hold_unit_norm(fold=self._is_new)
        return self

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        super().load_weights_from_checkpoint(checkpoint_path)
        if self.holds_unit_norm:
            self._hold_unit_norm(fold=False)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        keys = super().load_state_dict(state_dict, strict, assign)
        self._is_new = True
        forget_seen(self)
        return keys

    def begin_loose_pass(self) -> None:
        """Begin an encode outside the template: a loop written by hand may train by way of `encode` alone."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.keep_unit_norm()

    @uncompiled
    def keep_unit_norm(self) -> None:
        """Begin a training pass, as far as the decoder constraint goes.

        `train` says that the SAE is trained, and the constraint holds from then on, whatever parameter takes the place
        of W_dec. Without that word it holds from the second step of a loop on.
        """
        if not (self.training and self.holds_unit_norm):
            return
        if self._is_trained:
            self._hold_unit_norm(fold=self._is_new)
        else:
            arm_once_trained(self)

    def _hold_unit_norm(self, *, fold: bool) -> None:
        arm_unit_norm(self, fold=fold)
        self._is_trained, self._is_new = True, False
