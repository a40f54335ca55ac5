"""The verbs of `sae-lens-afa sweep`: comparisons of architectures, each with tables, plots and a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

sweep = typer.Typer(no_args_is_help=True, help="Compare architectures over grids of settings and several seeds.")
_OUTPUT = typer.Option(help="Folder; a sweep that was stopped goes on there.")
_GRID = typer.Option(
    help="ARCHITECTURE:FIELD=V,V[;FIELD=V...], any registered architecture; may be given several times. In place of"
    " the preset's."
)
_SEED = typer.Option(help="May be given several times. Default: the preset's.")
_STEPS = typer.Option(help="Training steps. Default: the preset's.")
_DEVICE = typer.Option(help="cpu, cuda, ...")


# The sweeps are imported where they run: `sae_lens.synthetic` and the statistics take seconds.
@sweep.command("ground-truth")
def ground_truth(
    output: Annotated[Path, _OUTPUT] = Path("runs/ground-truth"),
    preset: Annotated[str, typer.Option(help="quick (minutes), full (hours) or tiny (a test).")] = "quick",
    world: Annotated[list[str] | None, typer.Option(help="Data; may be given several times.")] = None,
    grid: Annotated[list[str] | None, _GRID] = None,
    seed: Annotated[list[int] | None, _SEED] = None,
    steps: Annotated[int | None, _STEPS] = None,
    device: Annotated[str, _DEVICE] = "cpu",
) -> None:
    """Does it find the right features? Train on synthetic data whose features are known."""
    from sae_lens_afa.experiments import Arm, ground_truth_sweep
    from sae_lens_afa.experiments.command import run_command

    arms = [Arm.parse(text) for text in grid or ()]
    chosen = ground_truth_sweep(preset, worlds=world or (), arms=arms, seeds=seed or (), steps=steps, device=device)
    print(run_command(chosen, output, _command()))


@sweep.command()
def paper(
    output: Annotated[Path, _OUTPUT] = Path("runs/paper"),
    preset: Annotated[
        str, typer.Option(help="paper (GPT-2 small; for a GPU), demo (the bundled model, minutes) or tiny (a test).")
    ] = "paper",
    layer: Annotated[list[int] | None, typer.Option(help="Of resid_pre; may be given several times.")] = None,
    grid: Annotated[list[str] | None, _GRID] = None,
    seed: Annotated[list[int] | None, _SEED] = None,
    steps: Annotated[int | None, _STEPS] = None,
    model: Annotated[str | None, typer.Option(help="Model name or folder in place of GPT-2 small.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id, folder or file in place of OpenWebText.")] = None,
    saes_per_group: Annotated[int | None, typer.Option(help="Most SAEs trained side by side.")] = None,
    device: Annotated[str, _DEVICE] = "cpu",
) -> None:
    """The AFA paper's comparison: layers x top-AFA, TopK and BatchTopK over their grids."""
    from sae_lens_afa.experiments import Arm, paper_sweep
    from sae_lens_afa.experiments.command import run_command

    chosen = paper_sweep(
        preset, layers=layer or (), arms=[Arm.parse(text) for text in grid or ()], seeds=seed or (), steps=steps,
        model=model, dataset=dataset, saes_per_group=saes_per_group, device=device,
    )  # fmt: skip
    print(run_command(chosen, output, _command()))


@sweep.command()
def activations(
    output: Annotated[Path, _OUTPUT] = Path("runs/activations"),
    activations: Annotated[
        Path | None, typer.Option(help=".safetensors file [tokens, d_in] to train on. Default: the bundled model's.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help=".safetensors file [tokens, d_in] to judge on.")] = None,
    preset: Annotated[str, typer.Option(help="quick (minutes), full (hours) or tiny (a test).")] = "quick",
    raw: Annotated[
        bool, typer.Option("--raw", help="Take a file's activations as they are. Default: each token standardised.")
    ] = False,
    d_sae: Annotated[int | None, typer.Option(help="Latents. Default: four times d_in.")] = None,
    grid: Annotated[list[str] | None, _GRID] = None,
    seed: Annotated[list[int] | None, _SEED] = None,
    steps: Annotated[int | None, _STEPS] = None,
    device: Annotated[str, _DEVICE] = "cpu",
) -> None:
    """Explained variance (and, on the bundled model, cross-entropy) against L0, a curve for each architecture."""
    from sae_lens_afa.experiments import Arm, activations_sweep
    from sae_lens_afa.experiments.command import run_command

    chosen = activations_sweep(
        activations, test, preset=preset, d_sae=d_sae, arms=[Arm.parse(text) for text in grid or ()],
        seeds=seed or (), steps=steps, raw=raw, device=device,
    )  # fmt: skip
    print(run_command(chosen, output, _command()))


def _command() -> str:
    return shlex.join(["sae-lens-afa", *sys.argv[1:]])
