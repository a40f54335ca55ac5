"""`sae-lens-afa eval`: any SAE judged by AFA."""

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


def evaluate(
    sae: Annotated[
        list[Path] | None, typer.Option(help="Folder of an SAE or training checkpoint; may be given several times.")
    ] = None,
    release: Annotated[str | None, typer.Option(help="SAELens release or Hub repository.")] = None,
    sae_id: Annotated[list[str] | None, typer.Option(help="SAE of the release; may be given several times.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The demo's SAEs on their model and held-out text.")] = False,
    model: Model = None,
    dataset: Dataset = None,
    hook: Hook = None,
    context_size: ContextSize = None,
    tokens: Tokens = None,
    batch_size_prompts: BatchSizePrompts = PROMPTS,
    cross_entropy_tokens: Annotated[
        int, typer.Option(help="On so many of the tokens, the model's cross-entropy with the SAE in place too.")
    ] = 0,
    positions: Annotated[
        list[int] | None, typer.Option("--position", help="Judge this position only; -1 is the last.")
    ] = None,
    exclude_special_tokens: ExcludeSpecialTokens = None,
    outlier_norm_multiple: Annotated[
        float | None, typer.Option(help="Report also without tokens above so many median norms.")
    ] = None,
    rescale_by_token_std: Annotated[
        bool, typer.Option("--rescale-by-token-std", help="Norms in raw units, for SAEs with layer_norm.")
    ] = False,
    device: Device = "cpu",
    output: Annotated[Path, typer.Option(help="Folder for metrics.json and plots.")] = Path("runs/eval"),
    per_token: Annotated[bool, typer.Option("--per-token", help="Write tokens.parquet too.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Judge any SAE by AFA: are its features over- or under-activated for their inputs?

    Under torchrun (torchrun --nproc-per-node N -m sae_lens_afa.cli eval ...) all processes share the text.
    """
    torchrun.show_progress_once()
    n_tokens = tokens_to_read(tokens, demo=demo)
    if demo:
        check_demo(model=model, dataset=dataset)
        if release is None:
            sae = sae or demo_saes()
    if not sae and release is None:
        raise ValueError("nothing to judge: give --sae PATH, or --release NAME with --sae-id ID, or --demo.")
    from sae_lens_afa.distributed import shared_evaluation
    from sae_lens_afa.hub import load_saes
    from sae_lens_afa.reports import check_evaluation, evaluate_saes

    check_evaluation(
        output, tokens=n_tokens, batch_size_prompts=batch_size_prompts, context_size=context_size,
        cross_entropy_tokens=cross_entropy_tokens, outlier_norm_multiple=outlier_norm_multiple, device=device,
        overwrite=overwrite,
    )  # fmt: skip
    with shared_evaluation(device) as device:
        saes = load_saes(sae or (), release, sae_id or (), device)
        read: dict[str, Any] = demo_model_and_text(device) if demo else {"model": model, "dataset": dataset}
        report = evaluate_saes(
            saes, output, **read, hook=hook, context_size=context_size, tokens=n_tokens,
            batch_size_prompts=batch_size_prompts, cross_entropy_tokens=cross_entropy_tokens, positions=positions or (),
            exclude_special_tokens=exclude_special_tokens, outlier_norm_multiple=outlier_norm_multiple,
            rescale_by_token_std=rescale_by_token_std, device=device, per_token=per_token, overwrite=overwrite,
        )  # fmt: skip
    print_report(report, report.files)
