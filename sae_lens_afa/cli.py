"""The command `sae-lens-afa`: every verb calls a public function and says what went wrong in one line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

import typer

from sae_lens_afa._cli_share import share
from sae_lens_afa._cli_sweep import sweep
from sae_lens_afa._cli_train import train_command
from sae_lens_afa.demo import evaluation as demo_evaluation
from sae_lens_afa.demo.run import DEFAULT_TOKENS as DEMO_TOKENS
from sae_lens_afa.demo.run import run_demo
from sae_lens_afa.evals.command import DEFAULT_PROMPTS, EvalRequest, eval_command, plot_command
from sae_lens_afa.evals.language_model import DEFAULT_TOKENS as EVAL_TOKENS
from sae_lens_afa.runner import TrainingInterrupted

app = typer.Typer(
    name="sae-lens-afa",
    help="Sparse autoencoders that choose their own number of active features per token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the trained SAEs.")] = Path("runs/demo"),
    tokens: Annotated[int, typer.Option(help="Training tokens of each.")] = DEMO_TOKENS,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
    resume_from_checkpoint: Annotated[Path | None, typer.Option(help="Continue an interrupted demo.")] = None,
) -> None:
    """Train two SAEs without a k on the bundled language model and text: no network, no account, a few minutes."""
    results = run_demo(
        output, tokens=tokens, device=device, overwrite=overwrite, resume_from_checkpoint=resume_from_checkpoint
    )
    print(f"\n{demo_evaluation.table(results)}\n\nsaved in {' and '.join(r.folder for r in results)}; load one with")
    print(f'  import sae_lens_afa; from sae_lens import SAE; sae = SAE.load_from_disk("{results[0].folder}")')


# The flags and their help are those of SAELens' runner: it parses them, and it answers --help.
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(ctx: typer.Context) -> None:
    """Train an SAE of any architecture (--architecture afa_threshold ...): every flag of SAELens' runner, see --help.

    --resume-from-checkpoint FOLDER on its own continues a run with its own settings.
    """
    print(train_command(ctx.args))


@app.command("eval")
def evaluate(
    sae: Annotated[list[Path] | None, typer.Option(help="Folder of a saved SAE; may be given several times.")] = None,
    release: Annotated[str | None, typer.Option(help="SAELens release or Hub repository.")] = None,
    sae_id: Annotated[list[str] | None, typer.Option(help="SAE of the release; may be given several times.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The demo's SAE on its model and held-out text.")] = False,
    model: Annotated[str | None, typer.Option(help="Model name or GPT-2 folder. Default: the SAE's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id, folder or file. Default: the SAE's.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook point. Default: each SAE's.")] = None,
    context_size: Annotated[int | None, typer.Option(help="Tokens of a prompt. Default: the SAE's.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read.")] = EVAL_TOKENS,
    batch_size_prompts: Annotated[int, typer.Option(help="Prompts per forward pass.")] = DEFAULT_PROMPTS,
    cross_entropy_tokens: Annotated[
        int, typer.Option(help="On so many of the tokens, the model's cross-entropy with the SAE in place too.")
    ] = 0,
    position: Annotated[list[int] | None, typer.Option(help="Judge this position only; -1 is the last.")] = None,
    exclude_special_tokens: Annotated[bool, typer.Option("--exclude-special-tokens", help="Leave them out.")] = False,
    outlier_norm_multiple: Annotated[
        float | None, typer.Option(help="Report also without tokens above so many median norms.")
    ] = None,
    rescale_by_token_std: Annotated[
        bool, typer.Option("--rescale-by-token-std", help="Norms in raw units, for SAEs with layer_norm.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder for metrics.json and plots.")] = Path("runs/eval"),
    per_token: Annotated[bool, typer.Option("--per-token", help="Write tokens.parquet too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
) -> None:
    """Judge any SAE by AFA: are its features over- or under-activated for their inputs?"""
    report = eval_command(
        EvalRequest(
            output=output, sae=sae or (), release=release, sae_id=sae_id or (), demo=demo, model=model,
            dataset=dataset, hook=hook, context_size=context_size, tokens=tokens,
            batch_size_prompts=batch_size_prompts, cross_entropy_tokens=cross_entropy_tokens, positions=position or (),
            exclude_special_tokens=exclude_special_tokens, outlier_norm_multiple=outlier_norm_multiple,
            rescale_by_token_std=rescale_by_token_std, device=device, per_token=per_token, overwrite=overwrite,
        )
    )  # fmt: skip
    print(f"\n{report}\n\nwritten:")
    for file in report.files:
        print(f"  {file}")


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="What `sae-lens-afa eval` wrote.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the plots. Default: the same.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="png, svg, pdf or html.")] = None,
) -> None:
    """Redraw the plots of an evaluation from its files."""
    for file in plot_command(folder, output=output, formats=formats or ("png", "html")):
        print(file)


app.add_typer(share)
app.add_typer(sweep, name="sweep")


def main() -> None:
    """Run the command; expected errors are one line on stderr and exit code 1."""
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
