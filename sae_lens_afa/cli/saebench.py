"""`sae-lens-afa saebench`: SAEBench's core evaluation, on a model and text that are here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_afa.cli.demo_inputs import check_demo, demo_model_and_text, demo_saes, tokens_to_read
from sae_lens_afa.cli.options import BatchSizePrompts, ContextSize, Dataset, Device, Hook, Model, Overwrite, Tokens
from sae_lens_afa.defaults import PROMPTS


def saebench(
    output: Annotated[Path, typer.Option(help="Folder for SAEBench's result file.")],
    sae: Annotated[Path | None, typer.Option(help="Folder of a saved SAE, of any architecture.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Judge on the bundled model and held-out text.")] = False,
    name: Annotated[str | None, typer.Option(help="Name in the result. Default: the folder's.")] = None,
    model: Model = None,
    dataset: Dataset = None,
    hook: Hook = None,
    context_size: ContextSize = None,
    tokens: Tokens = None,
    batch_size_prompts: BatchSizePrompts = PROMPTS,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Run SAEBench's core evaluation (pip install sae-bench) on a local model and text, and write its result file.

    Its cross-entropy takes a tenth of the tokens.
    """
    if demo:
        check_demo(model=model, dataset=dataset)
        sae = sae or demo_saes()[0]
    if sae is None:
        raise ValueError("nothing to judge: give --sae PATH, or --demo for the SAE in runs/demo.")
    from sae_lens_afa.interop import saebench_core

    read: dict[str, Any] = demo_model_and_text(device) if demo else {"model": model, "dataset": dataset}
    path = saebench_core(
        sae, output, name=name, **read, hook=hook, context_size=context_size, tokens=tokens_to_read(tokens, demo=demo),
        batch_size_prompts=batch_size_prompts, device=device, overwrite=overwrite,
    )  # fmt: skip
    print(f"saved as {path}")
