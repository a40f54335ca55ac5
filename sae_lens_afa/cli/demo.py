"""`sae-lens-afa demo`: what the package does, on a language model and text that it brings along."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sae_lens_afa.cli.options import Device, Overwrite
from sae_lens_afa.defaults import DEMO_EVAL_TOKENS, DEMO_TOKENS
from sae_lens_afa.files import FEATURES_FILENAME


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the top_afa SAE; the other, the evaluation and the features go beside it.")
    ] = Path("runs/demo"),
    tokens: Annotated[int, typer.Option(help="Training tokens of each.")] = DEMO_TOKENS,
    eval_tokens: Annotated[int, typer.Option(help="Held-out tokens to evaluate on.")] = DEMO_EVAL_TOKENS,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    resume_from_checkpoint: Annotated[Path | None, typer.Option(help="Continue an interrupted demo.")] = None,
) -> None:
    """Train two SAEs without a k on the bundled language model and text: no network, no account, a few minutes."""
    if "sae_lens" not in sys.modules:
        print("loading torch and SAELens ...", file=sys.stderr, flush=True)
    from sae_lens_afa.demo import demo_folders, features_folder, run_demo

    report = run_demo(
        output, tokens=tokens, eval_tokens=eval_tokens, device=device, overwrite=overwrite,
        resume_from_checkpoint=resume_from_checkpoint,
    )  # fmt: skip
    print(f"\n{report}")
    for name, result in report.results.items():
        d_in = report.described[name]["d_in"]
        if result.l0_mean is not None and result.l0_mean > d_in:
            print(
                f"  ({name}'s L0 is above d_in = {d_in}: the paper's loss pins the norm of the code,\n"
                "   not how few features carry it)"
            )
    print(f"\nfeatures of afa_pursuit, to look at in a browser: {features_folder(output) / FEATURES_FILENAME}")
    folders = demo_folders(output)
    print(f"saved in {' and '.join(map(str, folders))}, judged in {report.folder}; load one with")
    print(f'  import sae_lens_afa; from sae_lens import SAE; sae = SAE.load_from_disk("{folders[0]}")')
