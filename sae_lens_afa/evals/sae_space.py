"""Any SAE seen as AFA sees it: z, f, z^ and the decoder in the space in which the SAE decodes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitTrainingSAE
from sae_lens.saes.sae import SAE
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.saes.topk_sae import act_times_W_dec
from sae_lens.saes.transcoder import Transcoder
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_lens_afa.evals.token_norms import decoder_norms
from sae_lens_afa.saes._checks import check_activations

_HEAD_HOOKS = ("_z", "_q", "_k", "_v")
_SCALED_OUTSIDE = ("expected_average_only_in", "covariance_whitening")


class Coded(NamedTuple):
    """What an SAE makes of some tokens, in the space in which it decodes.

    Attributes:
        dense: z after the SAE's input normalisation, un-centred.
        feature_acts: f; strided or COO.
        recons: z^, before the output normalisation.
        raw_std: Standard deviation that layer_norm divided each token by; None for other normalisations.
    """

    dense: Float[Tensor, "tokens d_in"]
    feature_acts: Float[Tensor, "tokens d_sae"]
    recons: Float[Tensor, "tokens d_in"]
    raw_std: Float[Tensor, " tokens"] | None


class SAESpace:
    """Reads z, f and z^ off any SAELens SAE with a linear decoder, whatever its architecture and normalisation.

    Args:
        sae: An inference or training SAE.
        activation_scaler: The scaling that SAELens' trainer keeps outside of the SAE. Needed for
            "expected_average_only_in" and "covariance_whitening" that are not folded into the weights;
            `ActivationScaler()` for activations that are scaled already.

    Attributes:
        d_sae: Number of features.
        b_dec: The bias that the decoder adds; None if it adds none.
        decoder_norm: ||d_i||, float64; None where the SAE's activations carry it already.

    Raises:
        TypeError: not an SAE, or one for which the relation between ||z|| and ||f|| is not defined.
        ValueError: a normalisation without its scaler.
    """

    def __init__(self, sae: SAE[Any], activation_scaler: ActivationScaler | None = None) -> None:
        check_architecture(sae)
        if activation_scaler is None and sae.cfg.normalize_activations in _SCALED_OUTSIDE:
            raise ValueError(
                f"normalize_activations={sae.cfg.normalize_activations!r} is not folded into this SAE's weights, so it"
                " does not know its scale: pass activation_scaler (the trainer's), fold it"
                " (sae.fold_activation_norm_scaling_factor), or pass ActivationScaler() if the activations are scaled."
            )
        self.sae, self._scaler = sae, activation_scaler or ActivationScaler()
        self.d_sae, self.d_in = sae.cfg.d_sae, sae.cfg.d_in
        # The tied decoder adds its bias only where the encoder subtracts it.
        tied = isinstance(sae, MatchingPursuitSAE | MatchingPursuitTrainingSAE)
        self.b_dec = None if tied and not sae.cfg.apply_b_dec_to_input else sae.b_dec.detach()
        self._rescaled = bool(getattr(sae.cfg, "rescale_acts_by_decoder_norm", False))
        self.decoder_norm = None if self._rescaled else decoder_norms(sae.W_dec)
        self._decoder_checked = False

    def rows(self, activations: Any) -> Float[Tensor, "tokens d_in"]:
        """Raw hook-point activations [..., d_in] (heads: [..., heads, d_head]) as [tokens, d_in].

        Raises:
            TypeError: not a tensor of floating point.
            ValueError: the shape does not fit, or there are no tokens.
        """
        if not isinstance(activations, Tensor):
            raise TypeError(
                f"activations must be a tensor or an iterable of tensors, got a {type(activations).__name__}."
            )
        hook = self.sae.cfg.metadata.hook_name
        by_head = self.sae.cfg.reshape_activations == "hook_z" or str(hook).endswith(_HEAD_HOOKS)
        if by_head and activations.ndim >= 2 and activations.shape[-1] != self.d_in:
            check_activations(activations, self.d_in, heads=True)
            activations = activations.flatten(-2)
        check_activations(activations, self.d_in, heads=False)
        if activations.numel() == 0:
            raise ValueError(
                f"an empty batch: activations have shape {list(activations.shape)}; give at least one token."
            )
        return activations.reshape(-1, self.d_in)

    @torch.no_grad()
    def code(self, rows: Float[Tensor, "tokens d_in"]) -> Coded:
        """Encode and decode raw activations, given as `rows` returns them.

        Raises:
            ValueError: the SAE's reconstruction is not f @ W_dec + b_dec.
        """
        # Any: the base class' attributes of its input normalisation are set at run time.
        sae: Any = self.sae
        seen: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: Any) -> None:
            seen[hook.name] = tensor

        hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
            ("hook_sae_input", keep),
            ("hook_sae_recons", keep),
        ]
        with _heads_joined(sae), sae.hooks(fwd_hooks=hooks):
            acts = sae.encode(self._scaler.scale(rows.to(sae.device)))
            dense = sae.run_time_activation_norm_fn_in(seen["hook_sae_input"])
            std = sae.ln_std.squeeze(-1) if sae.cfg.normalize_activations == "layer_norm" else None
            sae.decode(acts)
        coded = Coded(dense, acts, seen["hook_sae_recons"], std)
        if not self._decoder_checked:
            self._check_decoder(coded)
        return coded

    def _check_decoder(self, coded: Coded) -> None:
        finite = coded.recons.isfinite().all(-1).nonzero()
        if len(finite) == 0:
            return
        row = int(finite[0])
        acts = (
            coded.feature_acts.to_dense()[row : row + 1]
            if coded.feature_acts.is_sparse
            else coded.feature_acts[row : row + 1]
        )
        bias = 0 if self.b_dec is None else self.b_dec
        expected = act_times_W_dec(acts, self.sae.W_dec, self._rescaled) + bias
        error = torch.linalg.vector_norm((coded.recons[row] - expected).float())
        scale = torch.linalg.vector_norm(expected.float()) + torch.linalg.vector_norm(acts.float())
        if error > 8 * torch.finfo(expected.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"{type(self.sae).__name__} does not decode as f @ W_dec + b_dec, so the relation between ||f|| and"
                " ||z|| is not defined for it."
            )
        self._decoder_checked = True


def check_architecture(sae: object) -> None:
    """Refuse what has no relation between ||z|| and ||f||.

    Raises:
        TypeError: saying why.
    """
    if not isinstance(sae, SAE):
        raise TypeError(f"expected a SAELens SAE, got {type(sae).__name__}.")
    if isinstance(sae, Transcoder):
        raise TypeError(
            f"{type(sae).__name__}: a transcoder's features reconstruct another activation than the one it reads, so"
            " ||f|| has no relation to the norm of its input. AFA judges autoencoders."
        )
    if isinstance(sae, TemporalSAE):
        raise TypeError(
            f"{type(sae).__name__}: part of its reconstruction is predicted from earlier tokens, so ||f|| of the novel"
            " part alone has no relation to ||z||. AFA judges SAEs that code each token by itself."
        )


@contextmanager
def _heads_joined(sae: SAE[Any]) -> Generator[None]:
    """Let the SAE take [tokens, d_in] for a while, whatever its reshaping; its own state is put back."""
    names = ("reshape_fn_in", "reshape_fn_out", "d_head", "hook_z_reshaping_mode")
    own = {name: vars(sae)[name] for name in names if name in vars(sae)}
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        for name in names:  # d_head is not there until the SAE has seen its first heads
            vars(sae).pop(name, None)
        vars(sae).update(own)
