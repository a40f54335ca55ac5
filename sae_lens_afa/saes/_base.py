"""What the architectures here share: a checked input, checked weights, and no whitening."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.saes._checks import check_activations, check_state_dict


class NormMatchingSAE(SAE[Any]):
    """An SAE with parameters W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in] that compares norms.

    A base beside SAELens' own, for inference and training classes alike.
    """

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
