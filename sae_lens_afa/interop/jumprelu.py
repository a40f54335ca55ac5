"""SAEs that choose per token as `jumprelu` SAEs, which anyone loads without this package."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from sae_lens import ActivationsStore
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_afa.architectures import ARCHITECTURES
from sae_lens_afa.evals.attached import saes_detached
from sae_lens_afa.evals.prompts import next_prompts
from sae_lens_afa.evals.sae_space import SAESpace, check_architecture
from sae_lens_afa.evals.token_norms import decoder_norms
from sae_lens_afa.interop._calibration import ThresholdCalibration
from sae_lens_afa.interop._comparison import compare, cross_entropies
from sae_lens_afa.interop._fitted_encoder import fit_encoder
from sae_lens_afa.interop._split import ActivationSplit
from sae_lens_afa.interop.agreement import METADATA_KEY, JumpReLUReport
from sae_lens_afa.loading.inference import inference_view
from sae_lens_afa.loading.models import check_hook

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

# This package's, and SAELens' own that chooses per token.
SUPPORTED = (*(each.name for each in ARCHITECTURES if each.exportable), "topk")
DEFAULT_CE_TOKENS = 8192
_CARRIED_FIELDS = (
    "d_in",
    "d_sae",
    "dtype",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
)


@torch.no_grad()
def export_jumprelu(
    sae: SAE[Any],
    activations: Tensor | Iterable[Tensor],
    *,
    model: HookedRootModule | None = None,
    activation_store: ActivationsStore | None = None,
    cross_entropy_tokens: int = DEFAULT_CE_TOKENS,
    batch_size: int = 4096,
    progress: bool = False,
) -> JumpReLUSAE:
    """Approximate an SAE by a `jumprelu` SAE: a fixed threshold for each feature in place of a choice per token.

    Each threshold is the one with which the feature is wrongly on or wrongly off on the fewest calibration tokens
    (see `ThresholdCalibration`): what makes active sets agree. It does not keep L0, nor the features' rates; the report
    says how all of it came out for this SAE.

    An SAE without an encoder (`afa_pursuit`) gets one, fitted to reconstruct with its dictionary, and one threshold
    that keeps its mean L0 (see `fit_encoder`): what one matmul can do, which is less. That takes minutes, and more
    tokens than thresholds do, 100,000 or more; they are held in memory.

    A feature that no calibration token selected gets the largest pre-activation it was seen with, but at least
    the median threshold of the others (in units of the decoder norm). 16,384 tokens are plenty.

    Args:
        sae: A `top_afa`, `afa_threshold`, `afa_pursuit` or `topk` SAE, for training (exported as it would be saved for
            inference) or for inference; not changed.
        activations: Raw hook-point values [..., d_in] (hook_z: [..., heads, d_head]), or an iterable of such
            batches, which is read once. The SAE's own normalisation is applied. Every fifth block of 128 tokens is held
            out for the report (at most 16,384 tokens); below 640 tokens the report is of the calibration tokens
            and says so.
        model: Language model, for the cross-entropy; with `activation_store` or not at all.
        activation_store: Its next prompts are taken for the cross-entropy, before `activations` is read.
        cross_entropy_tokens: About how many tokens of them; the text must have so many.
        batch_size: Tokens that are encoded at a time.
        progress: Show a progress bar.

    Returns:
        An independent SAE on the same device, with the same weights, dtype, input handling and metadata; but for an
        encoder that is fitted.
        `jumprelu_report` reads the report of how good it is from `cfg.metadata.jumprelu_export`.

    Raises:
        TypeError: not an SAE, a transcoder, or activations that are not floating-point tensors.
        ValueError: an architecture that is not supported, a shape that does not fit, less than 64 tokens, a NaN or an
            infinity (also in what the SAE makes of them), a hook that the model does not have, or too little text for
            the cross-entropy.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=16, d_sae=64))
        >>> export = afa.export_jumprelu(sae, torch.randn(1280, 16))
        >>> _ = export.save_model("runs/jumprelu")  # SAE.load_from_disk loads it wherever SAELens is
        >>> export.cfg.architecture()
        'jumprelu'
    """
    check_exportable(sae)
    if (model is None) != (activation_store is None):
        raise ValueError("the cross-entropy needs both model and activation_store: give both or neither.")
    original = _thresholdable_view(sae)
    if model is not None:
        if (hook := original.cfg.metadata.hook_name) is None:
            raise ValueError("this SAE does not say its hook (cfg.metadata.hook_name), which the cross-entropy needs.")
        with saes_detached(model):
            check_hook(model, hook, original.cfg.d_in, original.cfg.metadata.hook_head_index)
    prompts = [] if activation_store is None else _next_prompts(activation_store, cross_entropy_tokens)
    split = ActivationSplit(SAESpace(original), activations, batch_size)
    if has_encoder(original):
        calibration = _calibrate(original, split, progress=progress)
        never_selected = calibration.never_selected()
        export = with_thresholds(original, calibration.thresholds(decoder_norms(original.W_dec)))
    else:
        fitted = fit_encoder(original, split.calibration(), progress=progress)
        never_selected = fitted.never_selected
        export = with_thresholds(original, fitted.threshold, W_enc=fitted.W_enc, b_enc=fitted.b_enc)
    measured: dict[str, Any] = compare(original, export, split.judging())
    if model is not None and activation_store is not None:
        measured |= cross_entropies(original, export, model, prompts, dict(activation_store.model_kwargs))
    report = JumpReLUReport(
        original_architecture=original.cfg.architecture(),
        thresholds="per_feature" if has_encoder(original) else "global",
        encoder="original" if has_encoder(original) else "fitted",
        n_calibration_tokens=split.n_calibration,
        held_out=split.held_out,
        n_never_selected=int(never_selected.sum()),
        **measured,
    )
    export.cfg.metadata[METADATA_KEY] = report.to_dict()
    return export


def check_exportable(sae: SAE[Any]) -> None:
    """Refuse an SAE that `export_jumprelu` does not take.

    Raises:
        TypeError: not an SAE, or a transcoder.
        ValueError: another architecture, or a scaling that the SAE itself does not know.
    """
    check_architecture(sae)
    architecture = sae.cfg.architecture()
    if isinstance(sae, TrainingSAE) and sae.cfg.get_inference_config_class() is JumpReLUSAEConfig:
        raise ValueError(
            f"a {architecture} SAE is a jumprelu SAE once it is saved: use sae.save_inference_model(path)."
        )
    if architecture not in SUPPORTED:
        raise ValueError(
            f"export_jumprelu takes {', '.join(SUPPORTED)} SAEs, got {architecture!r}: share that as it is,"
            " SAELens needs no plugin for it."
        )
    if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        raise ValueError(
            f"normalize_activations={sae.cfg.normalize_activations!r} is not folded into this SAE's weights, so it does"
            " not know its scale: fold it first (sae.fold_activation_norm_scaling_factor), as SAELens' runner does."
        )


def has_encoder(sae: SAE[Any]) -> bool:
    """Tell whether an SAE has an encoder among its weights."""
    return "W_enc" in sae.state_dict()


def with_thresholds(sae: SAE[Any], threshold: Tensor, **encoder: Tensor) -> JumpReLUSAE:
    """Return an independent `jumprelu` SAE with the weights, settings and metadata of `sae`, and these thresholds.

    `encoder`, with W_enc and b_enc, is taken in place of the SAE's own.
    """
    config = JumpReLUSAEConfig(**{name: getattr(sae.cfg, name) for name in _CARRIED_FIELDS}, device="meta")
    config.metadata = deepcopy(sae.cfg.metadata)
    export = JumpReLUSAE(config)
    given = {"b_enc": torch.zeros_like(threshold), **sae.state_dict(), **encoder, "threshold": threshold}
    weights = {name: given[name].clone(memory_format=torch.contiguous_format) for name in export.state_dict()}
    export.load_state_dict(weights, assign=True)
    return export.to(device=sae.device)


def _thresholdable_view(sae: SAE[Any]) -> SAE[Any]:
    """Return the SAE for inference, with activations that are its pre-activations, kept or zeroed."""
    view = inference_view(sae)
    if getattr(view.cfg, "rescale_acts_by_decoder_norm", False):
        # Its activations carry the decoder norms: let its pre-activations carry them too.
        view.load_state_dict({name: tensor.clone() for name, tensor in view.state_dict().items()}, assign=True)
        view.fold_W_dec_norm()
        view.cfg.rescale_acts_by_decoder_norm = False
    return view


def _calibrate(original: SAE[Any], split: ActivationSplit, *, progress: bool) -> ThresholdCalibration:
    calibration = ThresholdCalibration(original.cfg.d_sae)
    seen: list[Tensor] = []

    def keep(hidden_pre: Tensor, hook: Any) -> None:  # noqa: ARG001  (the signature of a hook)
        seen.append(hidden_pre)

    with (
        original.hooks(fwd_hooks=[("hook_sae_acts_pre", keep)]),
        tqdm(unit=" tokens", desc="thresholds", disable=not progress) as bar,
    ):
        for rows in split.calibration():
            selected = original.encode(rows.to(original.device)) > 0
            hidden_pre = seen.pop()
            if not hidden_pre.isfinite().all():
                raise ValueError(
                    f"the SAE's pre-activations in {original.dtype} are not finite on these activations: they are too"
                    " large for it, or its weights are damaged."
                )
            calibration.add(hidden_pre, selected)
            bar.update(len(rows))
    return calibration


def _next_prompts(store: ActivationsStore, tokens: int) -> list[Int[Tensor, "prompts context"]]:
    """Return about so many tokens of the store, in its batches."""
    if tokens < 1:
        raise ValueError(f"cross_entropy_tokens must be at least 1, got {tokens}.")
    if store.dataset is None:
        raise ValueError("activation_store reads cached activations and has no token ids, which a cross-entropy needs.")
    wanted = -(-tokens // store.context_size)
    prompts = next_prompts(store, wanted)
    if prompts is None or len(prompts) < wanted:
        # The store begins again: what calibrates would not be other text.
        read = 0 if prompts is None else prompts.numel()
        raise ValueError(
            f"the text ends after {read} tokens, before the {tokens} of the"
            " cross-entropy: give more text, or lower cross_entropy_tokens (on the command line --tokens)."
        )
    return list(prompts.split(store.store_batch_size_prompts))
