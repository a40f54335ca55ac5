"""`sae-lens-afa features`: a page on which the features of an SAE can be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_afa import torchrun
from sae_lens_afa.cli.demo_inputs import check_demo, demo_model_and_text, demo_saes, tokens_to_read
from sae_lens_afa.cli.options import (
    BatchSizePrompts,
    ContextSize,
    Dataset,
    Device,
    ExcludeSpecialTokens,
    Hook,
    Model,
    Overwrite,
    Tokens,
)
from sae_lens_afa.cli.written import print_report
from sae_lens_afa.defaults import PROMPTS


def features(
    sae: Annotated[list[Path] | None, typer.Option(help="Folder of an SAE or training checkpoint.")] = None,
    release: Annotated[str | None, typer.Option(help="SAELens release or Hub repository.")] = None,
    sae_id: Annotated[list[str] | None, typer.Option(help="SAE of the release.")] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="On the demo's model and held-out text; without --sae its afa_pursuit SAE.")
    ] = False,
    model: Model = None,
    dataset: Dataset = None,
    hook: Hook = None,
    context_size: ContextSize = None,
    tokens: Tokens = None,
    batch_size_prompts: BatchSizePrompts = PROMPTS,
    exclude_special_tokens: ExcludeSpecialTokens = None,
    device: Device = "cpu",
    output: Annotated[Path, typer.Option(help="Folder for features.html and latents.csv.")] = Path("runs/features"),
    overwrite: Overwrite = False,
) -> None:
    """Write a page of an SAE's features: where each is active, what it promotes, what comes with it.

    Under torchrun (torchrun --nproc-per-node N -m sae_lens_afa.cli features ...) all processes share the text.
    """
    torchrun.show_progress_once()
    n_tokens = tokens_to_read(tokens, demo=demo)
    if demo:
        check_demo(model=model, dataset=dataset)
        if release is None:
            sae = sae or demo_saes()[-1:]
    if not sae and release is None:
        raise ValueError("nothing to look at: give --sae PATH, or --release NAME with --sae-id ID, or --demo.")
    if len(sae or ()) + len(sae_id or ()) > 1:
        raise ValueError("a page shows one SAE: give one, and another --output for each of the others.")
    from sae_lens_afa.distributed import shared_evaluation
    from sae_lens_afa.feature_page import features_by_name
    from sae_lens_afa.files import check_output_folder
    from sae_lens_afa.hub import load_saes
    from sae_lens_afa.loading.models import check_device

    check_output_folder(output, overwrite=overwrite)
    check_device(device)
    with shared_evaluation(device) as device:
        ((name, loaded),) = load_saes(sae or (), release, sae_id or (), device).items()
        read: dict[str, Any] = demo_model_and_text(device) if demo else {"model": model, "dataset": dataset}
        report = features_by_name(
            loaded, output, name=name, **read, hook=hook, context_size=context_size, tokens=n_tokens,
            batch_size_prompts=batch_size_prompts, exclude_special_tokens=exclude_special_tokens, device=device,
            overwrite=overwrite,
        )  # fmt: skip
    print_report(report, report.files)
