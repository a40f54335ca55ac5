"""The command `sae-lens-afa`: every verb calls a public function and says what went wrong in one line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="sae-lens-afa",
    help="Sparse autoencoders that choose their own number of active features per token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130
_RESUME_FLAG = "--resume_from_checkpoint"


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the trained SAE.")] = Path("runs/demo"),
    tokens: Annotated[int, typer.Option(help="Training tokens.")] = 819_200,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
    resume_from_checkpoint: Annotated[Path | None, typer.Option(help="Continue an interrupted demo.")] = None,
) -> None:
    """Train a top-AFA SAE on the bundled language model and text: no network, no account, a few minutes."""
    from sae_lens_afa.demo import run_demo

    result = run_demo(
        output, tokens=tokens, device=device, overwrite=overwrite, resume_from_checkpoint=resume_from_checkpoint
    )
    print(f"\n{result}\n\nsaved in {result.folder}; load it with")
    print(f'  import sae_lens_afa; from sae_lens import SAE; sae = SAE.load_from_disk("{result.folder}")')


# The flags and their help are those of SAELens' runner: it parses them, and it answers --help.
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(ctx: typer.Context) -> None:
    """Train an SAE of any architecture (--architecture top_afa ...): every flag of SAELens' runner; --help lists them.

    --resume-from-checkpoint FOLDER on its own continues a run with its own settings.
    """
    from sae_lens.llm_sae_training_runner import (
        _parse_cfg_args,  # pyright: ignore[reportPrivateUsage]  (the parser behind SAELens' own command)
    )

    from sae_lens_afa.runner import InterruptibleTrainingRunner, config_from_checkpoint

    args = [_with_underscores(arg) for arg in ctx.args]
    match [part for arg in args for part in arg.split("=", 1)]:
        case [flag, checkpoint] if flag == _RESUME_FLAG:
            cfg = config_from_checkpoint(checkpoint)
        case _:
            cfg = _parse_cfg_args(args)
    InterruptibleTrainingRunner(cfg).run()


def _with_underscores(arg: str) -> str:
    """SAELens spells its flags with underscores; take them with dashes too."""
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def main() -> None:
    """Run the command; expected errors are one line on stderr and exit code 1."""
    from sae_lens_afa.runner import TrainingInterrupted

    try:
        app()
    except TrainingInterrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        if stop.checkpoint is not None:
            verb = next((arg for arg in sys.argv[1:] if arg in ("demo", "train")), "train")
            print(
                f"continue with: sae-lens-afa {verb} --resume-from-checkpoint {stop.checkpoint}"
                + (" (and the other options as before)" if verb == "demo" else ""),
                file=sys.stderr,
            )
        sys.exit(_INTERRUPTED)
    except (ValueError, TypeError, OSError, argparse.ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
