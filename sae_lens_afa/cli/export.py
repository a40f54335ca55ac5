"""`sae-lens-afa export`: a jumprelu SAE that stands for another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_afa.cli.demo_inputs import check_demo, demo_model_and_text, demo_saes
from sae_lens_afa.cli.options import (
    Activations,
    BatchSizePrompts,
    CalibrateOnDemo,
    ContextSize,
    Dataset,
    Device,
    Hook,
    Model,
    Overwrite,
)
from sae_lens_afa.defaults import EXPORT_TOKENS, PROMPTS


def export(
    output: Annotated[Path, typer.Option(help="Folder for the jumprelu SAE.")],
    sae: Annotated[
        Path | None, typer.Option(help="Folder of a saved top_afa, afa_threshold, afa_pursuit or topk SAE.")
    ] = None,
    demo: CalibrateOnDemo = False,
    activations: Activations = None,
    model: Model = None,
    dataset: Dataset = None,
    hook: Hook = None,
    context_size: ContextSize = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens for thresholds and report; for afa_pursuit's fitted encoder 100000 or more.")
    ] = EXPORT_TOKENS,
    batch_size_prompts: BatchSizePrompts = PROMPTS,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Approximate an SAE by a jumprelu SAE that loads without this package, and say how good that is."""
    if demo:
        check_demo(model=model, dataset=dataset, activations=activations)
        sae = sae or demo_saes()[0]
    if sae is None:
        raise ValueError("nothing to export: give --sae PATH, or --demo for the SAE in runs/demo.")
    from sae_lens_afa.interop import export_to_folder

    read: dict[str, Any] = demo_model_and_text(device) if demo else {"model": model, "dataset": dataset}
    report = export_to_folder(
        sae, output, activations=activations, **read, hook=hook, context_size=context_size, tokens=tokens,
        batch_size_prompts=batch_size_prompts, device=device, overwrite=overwrite,
    )  # fmt: skip
    print(f'{report}\n\nsaved in {output}; SAE.load_from_disk("{output}") loads it')
