"""z, f, z^ and the decoder of any SAE, in the space in which it decodes."""

from __future__ import annotations

from collections.abc import Generator
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
from torch import Tensor, nn

from sae_lens_afa.evals.token_norms import decoder_norms
from sae_lens_afa.saes._validation import check_activations

_HEAD_HOOKS = ("_z", "_q", "_k", "_v")
_SCALED_OUTSIDE = ("expected_average_only_in", "covariance_whitening")


class CodedTokens(NamedTuple):
    """Some tokens as an SAE codes them, in the space in which it decodes.

    Attributes:
        dense: z after the SAE's input normalisation, un-centred.
        feature_acts: f; strided or COO.
        recons: z^, before the output normalisation.
        raw_std: Standard deviation that layer_norm divided each token by; None for other normalisations.
        raw_recons: x^ at the hook point, after the output normalisation.
    """

    dense: Float[Tensor, "tokens d_in"]
    feature_acts: Float[Tensor, "tokens d_sae"]
    recons: Float[Tensor, "tokens d_in"]
    raw_std: Float[Tensor, " tokens"] | None
    raw_recons: Float[Tensor, "tokens d_in"]


class SAESpace:
    """The space in which any SAELens SAE with a linear decoder decodes, whatever its architecture and normalisation.

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
        """Return raw activations [..., d_in] (heads: [..., heads, d_head]) as [tokens, d_in], without their graph.

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
        return activations.detach().reshape(-1, self.d_in)

    @torch.no_grad()
    def code(self, rows: Float[Tensor, "tokens d_in"]) -> CodedTokens:
        """Encode and decode raw activations, given as `rows` returns them.

        Raises:
            ValueError: the SAE's reconstruction is not f @ W_dec + b_dec.
        """
        # Any: the base class' attributes of its input normalisation are set at run time.
        sae: Any = self.sae
        with _unchanged(sae), _kept(sae.hook_sae_input) as inputs, _kept(sae.hook_sae_recons) as recons:
            sae.turn_off_forward_pass_hook_z_reshaping()
            acts = sae.encode(self._scaler.scale(rows.to(sae.device)))
            given = inputs[-1]
            dense = sae.run_time_activation_norm_fn_in(given)
            raw_recons = self._scaler.unscale(sae.decode(acts))
        # As SAELens' layer_norm takes it.
        by_std = sae.cfg.normalize_activations == "layer_norm"
        std = (given - given.mean(-1, keepdim=True)).std(-1) if by_std else None
        coded = CodedTokens(dense, acts, recons[-1], std, raw_recons)
        if not self._decoder_checked:
            self._check_decoder(coded)
        return coded

    def _check_decoder(self, coded: CodedTokens) -> None:
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


def architecture_of(sae: SAE[Any]) -> str:
    """Return the architecture that an SAE was trained as, if its metadata says so: several are saved as "jumprelu".

    A stand-in that `export_jumprelu` made is one of "jumprelu", whatever it stands for.
    """
    metadata = sae.cfg.metadata
    if "jumprelu_export" in metadata:
        return sae.cfg.architecture()
    return metadata.training_architecture or sae.cfg.architecture()


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
def _kept(hook: nn.Module) -> Generator[list[Tensor]]:
    """Collect what passes a hook point for a while, after the hooks that are there.

    By a hook of torch's on the module itself: that of an SAE that was attached to a model is named after its place in
    the model, and removing TransformerLens' hooks by name or level would take the model's with them.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  (torch's signature)
        seen.append(output)

    handle = hook.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _unchanged(sae: SAE[Any]) -> Generator[None]:
    """Put back all that coding sets on the SAE itself: its reshaping, the statistics of the last batch it encoded."""
    own = dict(vars(sae))
    try:
        yield
    finally:
        state = vars(sae)
        state.clear()
        state.update(own)
