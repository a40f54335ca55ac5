"""What the architectures here share: a checked input, checked weights, no whitening, and unit-norm training."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.functional import epsilon_lbo, feature_norm
from sae_lens_afa.saes._checks import check_activations, check_state_dict
from sae_lens_afa.saes._step import SelectionRule, decode, encode
from sae_lens_afa.saes._unit_norm import arm_unit_norm


class NormMatchingSAE(SAE[Any]):
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
        return encode(self, self.normalized_input(x), self.selection_rule())[0]

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction, in the shape and the space of the raw activations, of `feature_acts` [..., d_sae]."""
        return decode(self, feature_acts)

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

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature activations and pre-activations (before the ReLU, unscaled), each [..., d_sae], of [..., d_in]."""
        return encode(self, self.normalized_input(x), self.selection_rule())

    @torch.no_grad()
    def norm_metrics(self, x: Tensor, feature_acts: Tensor) -> dict[str, Any]:
        """How well norms match on this batch, in the paper's form (the bias as a feature, x un-centred)."""
        dense, features = torch.linalg.vector_norm(x, dim=-1), feature_norm(feature_acts, self.W_dec, self.b_dec)
        l0 = torch.count_nonzero(feature_acts, dim=-1).float()
        return {
            "afa_norm_ratio": (features / dense).median(),
            "afa_epsilon_lbo": epsilon_lbo(dense, features, self.cfg.d_sae).nanmedian(),
            "afa_frac_over_activated": (features > dense).float().mean(),
            "l0_std": l0.std(correction=0),
        }

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and self.cfg.unit_norm_decoder:
            arm_unit_norm(self, fold=True)
        return self

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        super().load_weights_from_checkpoint(checkpoint_path)
        if self.cfg.unit_norm_decoder:
            arm_unit_norm(self, fold=False)
