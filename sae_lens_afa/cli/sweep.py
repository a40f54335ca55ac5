"""`sae-lens-afa sweep`: comparisons of architectures, each with tables, plots and a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_lens_afa.cli.errors import INTERRUPTED
from sae_lens_afa.cli.options import Device
from sae_lens_afa.cli.written import print_report

if TYPE_CHECKING:
    from sae_lens_afa.experiments import Arm
    from sae_lens_afa.experiments.sweep import Sweep

sweep = typer.Typer(no_args_is_help=True, help="Compare architectures over grids of settings and several seeds.")

Output = Annotated[Path, typer.Option(help="Folder; a sweep that was stopped goes on there.")]
Preset = Annotated[str, typer.Option(help="quick (minutes), full (hours) or tiny (a test).")]
Grids = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        help="ARCHITECTURE:FIELD=V,V[;FIELD=V...], any registered architecture; may be given several times. In place of"
        " the preset's.",
    ),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="May be given several times. Default: the preset's.")]
Steps = Annotated[
    list[int] | None,
    typer.Option(help="Training steps; may be given several times, each run is made with each. Default: the preset's."),
]
LearningRate = Annotated[
    list[float] | None,
    typer.Option(help="Learning rate; may be given several times, each run is made with each. Default: the preset's."),
]

BatchSize = Annotated[int | None, typer.Option(help="Tokens of each training step. Default: the preset's.")]


# The sweeps are imported where they run: `sae_lens.synthetic` and the statistics take seconds.
@sweep.command("ground-truth")
def ground_truth(
    output: Output = Path("runs/ground-truth"),
    preset: Preset = "quick",
    worlds: Annotated[list[str] | None, typer.Option("--world", help="Data; may be given several times.")] = None,
    arms: Grids = None,
    seeds: Seeds = None,
    steps: Steps = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    pool: Annotated[
        int | None,
        typer.Option(help="Train on so many samples, kept on disk and used again. Default: new ones in every step."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Does it find the right features? Train on synthetic data whose features are known."""
    from sae_lens_afa.experiments import ground_truth_sweep

    chosen = ground_truth_sweep(
        preset, worlds=worlds or (), arms=_arms(arms), seeds=seeds or (), steps=steps, lr=lr,
        batch_size=batch_size, pool=pool, device=device,
    )  # fmt: skip
    _run(chosen, output)


@sweep.command()
def paper(
    output: Output = Path("runs/paper"),
    preset: Annotated[
        str, typer.Option(help="paper (GPT-2 small; for a GPU), demo (the bundled model, minutes) or tiny (a test).")
    ] = "paper",
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="Of resid_pre; may be given several times.")
    ] = None,
    arms: Grids = None,
    seeds: Seeds = None,
    steps: Steps = None,
    lr: LearningRate = None,
    model: Annotated[str | None, typer.Option(help="Model name or folder in place of GPT-2 small.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id, folder or file in place of OpenWebText.")] = None,
    saes_per_group: Annotated[int | None, typer.Option(help="Most SAEs trained side by side.")] = None,
    device: Device = "cpu",
) -> None:
    """The AFA paper's comparison: layers x top-AFA, TopK and BatchTopK over their grids."""
    from sae_lens_afa.experiments import paper_sweep

    chosen = paper_sweep(
        preset, layers=layers or (), arms=_arms(arms), seeds=seeds or (), steps=steps, lr=lr, model=model,
        dataset=dataset, saes_per_group=saes_per_group, device=device,
    )  # fmt: skip
    _run(chosen, output)


@sweep.command()
def activations(
    output: Output = Path("runs/activations"),
    activations: Annotated[
        Path | None, typer.Option(help=".safetensors file [tokens, d_in] to train on. Default: the bundled model's.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help=".safetensors file [tokens, d_in] to judge on.")] = None,
    preset: Preset = "quick",
    raw: Annotated[
        bool, typer.Option("--raw", help="Take a file's activations as they are. Default: each token standardised.")
    ] = False,
    d_sae: Annotated[int | None, typer.Option(help="Latents. Default: four times d_in.")] = None,
    arms: Grids = None,
    seeds: Seeds = None,
    steps: Steps = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    model: Annotated[
        str | None, typer.Option(help="Model name or folder in place of the bundled one; needs --dataset and --hook.")
    ] = None,
    model_class_name: Annotated[
        str | None,
        typer.Option(help="AutoModelForCausalLM for a folder of any architecture. Default: HookedTransformer."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub id, folder or file; its first 1,000 documents are judged on.")
    ] = None,
    hook: Annotated[str | None, typer.Option(help="Hook point of the model.")] = None,
    d_in: Annotated[int | None, typer.Option(help="Width of the hook. Default: the model's own width.")] = None,
    device: Device = "cpu",
) -> None:
    """Explained variance (and, on a model, its cross-entropy) against L0, a curve for each architecture."""
    from sae_lens_afa.experiments import activations_sweep

    chosen = activations_sweep(
        activations, test, preset=preset, d_sae=d_sae, arms=_arms(arms), seeds=seeds or (), steps=steps, lr=lr,
        batch_size=batch_size, raw=raw, model=model, model_class_name=model_class_name, dataset=dataset, hook=hook,
        d_in=d_in, device=device,
    )  # fmt: skip
    _run(chosen, output)


def _arms(grids: list[str] | None) -> list[Arm]:
    from sae_lens_afa.experiments import Arm

    return [Arm.parse(text) for text in grids or ()]


def _run(chosen: Sweep, output: Path) -> None:
    """Run a sweep to its end, and say what came out; stopped with Ctrl-C, how to go on."""
    from sae_lens_afa._support import expected_messages_off
    from sae_lens_afa.experiments import run_sweep

    try:
        with expected_messages_off():
            result = run_sweep(chosen, output, command=shlex.join(["sae-lens-afa", *sys.argv[1:]]))
    except KeyboardInterrupt:
        print(f"\nstopped; finished runs are kept in {output}: the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if result is not None:  # else another process of torchrun's reports
        print_report(result, result.files)
