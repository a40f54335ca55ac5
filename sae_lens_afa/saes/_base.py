"""What the architectures here share: a checked input, checked weights, no whitening, and unit-norm training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.functional import epsilon_lbo, feature_norm
from sae_lens_afa.saes._checks import check_activations, check_state_dict
from sae_lens_afa.saes._layer_norm import RememberedLayerNorm
from sae_lens_afa.saes._step import SelectionRule, decode, encode
from sae_lens_afa.saes._tracked import uncompiled
from sae_lens_afa.saes._unit_norm import arm_once_trained, arm_unit_norm, forget_seen


class NormMatchingSAE(RememberedLayerNorm, SAE[Any]):
    """An SAE with parameters W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in] that compares norms.

    A base beside SAELens' own, for inference and training classes alike. A token's code depends on that token
    alone, so any leading dimensions will do.
    """

    @abstractmethod
    def selection_rule(self) -> SelectionRule:
        """Which features are active, once the SAE is trained."""
        ...

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Feature activations [..., d_sae] of raw activations [..., d_in] (hook_z: [..., heads, d_head])."""
        feature_acts, _ = encode(self, self.normalized_input(x), self.selection_rule())
        self.remember_code(feature_acts)
        return feature_acts

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction, in the shape and the space of the raw activations, of `feature_acts` [..., d_sae].

        Under layer_norm this needs the mean and standard deviation of each token, which a code does not hold: the SAE
        keeps them. A tensor that `encode` returned is decoded with its own as long as you hold it, edited in place
        or not, any number of times, and also when other batches were encoded since. Any other tensor (a copy, an
        edited clone) is decoded with those of the batch that was encoded last. So a copy of the code of an earlier
        batch of the same shape comes out wrong, and nothing can tell: decode it before you encode another batch.

        Raises:
            ValueError: the last axis is not d_sae; or under layer_norm, nothing was encoded, or the last batch had
                another leading shape.
        """
        return self.decode_with_own_statistics(feature_acts, partial(decode, self))

    def normalized_input(self, sae_in: Tensor) -> Tensor:
        """Raw activations as the SAE decodes them: heads joined, normalised, not centred; [..., d_in].

        Raises:
            TypeError: `sae_in` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        check_activations(sae_in, self.cfg.d_in, heads=self.hook_z_reshaping_mode)
        x = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        return self.run_time_activation_norm_fn_in(x)

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        return self.normalized_input(sae_in) - self.b_dec

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        d_in, d_sae = self.cfg.d_in, self.cfg.d_sae
        weights = {name: tensor for name, tensor in state_dict.items() if name not in self._buffers}
        check_state_dict(weights, {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)})

    @override
    def fold_activation_whitening(
        self, mean: torch.Tensor, whitening_matrix: torch.Tensor, unwhitening_matrix: torch.Tensor
    ) -> None:
        raise NotImplementedError(
            f"{self.cfg.architecture()} cannot absorb a whitening: it would change the norms by which features are"
            " selected. Train with normalize_activations='layer_norm' or 'none'."
        )


class NormMatchingTrainingSAE(NormMatchingSAE, TrainingSAE[Any]):
    """The same for training: decoder rows at norm 1 where `cfg.unit_norm_decoder`, and figures of how norms match."""

    # Of the SAE and not of its W_dec, so that a deep copy has them: whether somebody said that it is trained, and
    # whether its weights are from elsewhere, with rows of any norm.
    _is_trained = False
    _is_new = True

    @override
    def encode(self, x: Tensor) -> Tensor:
        self._keep_unit_norm_in_loops()
        return super().encode(x)

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature activations and pre-activations (before the ReLU, unscaled), each [..., d_sae], of [..., d_in]."""
        self._keep_unit_norm_in_loops()
        feature_acts, hidden_pre = encode(self, self.normalized_input(x), self.selection_rule())
        self.remember_code(feature_acts)
        return feature_acts, hidden_pre

    @torch.no_grad()
    def norm_metrics(self, x: Tensor, feature_acts: Tensor) -> dict[str, Any]:
        """How well norms match on this batch, in the paper's form (the bias as a feature, x un-centred).

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

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and self.cfg.unit_norm_decoder:
            self._hold_unit_norm(fold=self._is_new)
        return self

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        super().load_weights_from_checkpoint(checkpoint_path)
        if self.cfg.unit_norm_decoder:
            self._hold_unit_norm(fold=False)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        keys = super().load_state_dict(state_dict, strict, assign)
        self._is_new = True
        forget_seen(self)
        return keys

    @uncompiled
    def keep_unit_norm(self) -> None:
        """What a training pass does first for the decoder constraint.

        `train` says that the SAE is trained, and the constraint holds from then on, whatever parameter takes the place
        of W_dec. Without that word it holds from the second step of a loop on.
        """
        if not (self.training and self.cfg.unit_norm_decoder):
            return
        if self._is_trained:
            self._hold_unit_norm(fold=self._is_new)
        else:
            arm_once_trained(self)

    def _keep_unit_norm_in_loops(self) -> None:
        """The same for a loop written by hand, which may train by way of `encode` or `forward` alone."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.keep_unit_norm()

    def _hold_unit_norm(self, *, fold: bool) -> None:
        arm_unit_norm(self, fold=fold)
        self._is_trained, self._is_new = True, False
