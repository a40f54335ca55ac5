"""Stand-ins as folders: an SAE and its calibration by name, written whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from sae_lens import ActivationsStore
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAE
from torch import Tensor

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.defaults import EXPORT_TOKENS, PROMPTS
from sae_lens_afa.evals.inputs import check_sizes, inputs_for
from sae_lens_afa.evals.prompts import batches_once
from sae_lens_afa.files import check_replaceable, write_folder
from sae_lens_afa.interop.agreement import JumpReLUReport, jumprelu_report
from sae_lens_afa.interop.jumprelu import DEFAULT_CE_TOKENS, check_exportable, export_jumprelu
from sae_lens_afa.loading.activations import read_activations
from sae_lens_afa.loading.models import check_device
from sae_lens_afa.loading.saes import load_sae

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def export_to_folder(
    sae: str | Path | SAE[Any],
    output: str | Path,
    *,
    activations: str | Path | None = None,
    model: str | HookedRootModule | None = None,
    dataset: str | Dataset | None = None,
    hook: str | None = None,
    context_size: int | None = None,
    tokens: int = EXPORT_TOKENS,
    batch_size_prompts: int = PROMPTS,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> JumpReLUReport:
    """Write a `jumprelu` SAE that approximates another, as `export_jumprelu` makes it.

    What can be known to be wrong is said before anything is downloaded or computed.

    Args:
        sae: A `top_afa`, `afa_threshold`, `afa_pursuit` or `topk` SAE, or its folder.
        output: Folder to write.
        activations: A .safetensors file of raw hook-point values, one tensor or one of the name "activations".
            Without it they come from model and text, with which the cross-entropy is measured too.
        model: Name, folder or model. None takes the name in the SAE's metadata; so with the next three.
        dataset: Name, file, folder, or text as `loading.text.text_dataset` makes it.
        hook: Hook point that the SAE codes.
        context_size: Tokens of a prompt.
        tokens: Tokens of the text for thresholds and report; the cross-entropy takes up to 8,192 before them.
        batch_size_prompts: Prompts per forward pass.
        device: cpu, cuda, ...
        overwrite: Replace the SAE in an existing `output`.
        progress: Show a progress bar.

    Returns:
        How good the approximation is.

    Raises:
        ValueError, TypeError, OSError: one line that names the parameter and says what to do.

    Example:
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> import sae_lens_afa as afa
        >>> cfg = afa.TopAFATrainingSAEConfig(d_in=16, d_sae=64)
        >>> save_file({"activations": torch.randn(1280, 16)}, "activations.safetensors")
        >>> report = afa.interop.export_to_folder(
        ...     afa.TopAFATrainingSAE(cfg), "jumprelu", activations="activations.safetensors", progress=False
        ... )
        >>> report.n_calibration_tokens
        1024
    """
    output = Path(output)
    check_replaceable(output, overwrite=overwrite)
    check_device(device)
    check_sizes(tokens=tokens, batch_size_prompts=batch_size_prompts, context_size=context_size)
    if activations is not None:
        asked = {"model": model, "dataset": dataset, "hook": hook, "context_size": context_size}
        if given := [name for name, value in asked.items() if value is not None]:
            raise ValueError(f"activations are read as they are: leave out {', '.join(given)}.")
        batches = read_activations(activations)
        export = export_jumprelu(_loaded(sae, device), batches, progress=progress)
    else:
        name = Path(sae).name if isinstance(sae, str | Path) else "the SAE"
        sae = _loaded(sae, device)
        check_exportable(sae)
        with inputs_for(
            {name: sae}, model=model, dataset=dataset, hook=hook, context_size=context_size, tokens=tokens,
            batch_size_prompts=batch_size_prompts, device=device,
        ) as inputs:  # fmt: skip
            export = _calibrated(sae, inputs.model, inputs.store, tokens, progress=progress)
    write_folder(output, export.save_model)
    return jumprelu_report(export)


def _loaded(sae: str | Path | SAE[Any], device: str) -> SAE[Any]:
    return load_sae(sae, device, where=f"sae {sae}") if isinstance(sae, str | Path) else sae


def _calibrated(
    sae: SAE[Any], model: HookedRootModule, store: ActivationsStore, tokens: int, *, progress: bool
) -> JumpReLUSAE:
    """Return the stand-in that is calibrated on the store's text, after the prompts that measure the cross-entropy."""
    with expected_messages_off():
        return export_jumprelu(
            sae, _activations(store, tokens), model=model, activation_store=store, progress=progress,
            cross_entropy_tokens=min(DEFAULT_CE_TOKENS, -(-tokens // 4)),
        )  # fmt: skip


def _activations(store: ActivationsStore, tokens: int) -> Iterator[Tensor]:
    """Read the store's next activations, up to so many tokens or the end of the text."""
    for batch in batches_once(store, -(-tokens // store.context_size), store.store_batch_size_prompts):
        yield store.get_activations(batch).flatten(0, 1)
