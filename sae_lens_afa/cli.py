"""The command `sae-lens-afa`: every verb calls a public function and says what went wrong in one line.

What a verb calls is imported where it runs, so that --help and the verbs that only read files start at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typing_extensions import TypeIs

from sae_lens_afa._cli_defaults import DEMO_EVAL_TOKENS, DEMO_TOKENS, EVAL_TOKENS, PROMPTS
from sae_lens_afa._cli_errors import describe, describe_usage, is_raised_here
from sae_lens_afa._cli_share import share
from sae_lens_afa._cli_sweep import sweep

if TYPE_CHECKING:
    from sae_lens_afa.runner import TrainingInterrupted

_NAME = "sae-lens-afa"
app = typer.Typer(
    name=_NAME,
    help="Sparse autoencoders that choose their own number of active features per token.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
_FAILED, _WRONG_CALL, _INTERRUPTED = 1, 2, 130
_DEBUG = "--debug"
# click's or, in newer versions, typer's own.
_UsageError = cast(type[Exception], typer.BadParameter.__bases__[0])


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Options of all verbs."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the trained SAEs.")] = Path("runs/demo"),
    tokens: Annotated[int, typer.Option(help="Training tokens of each.")] = DEMO_TOKENS,
    eval_tokens: Annotated[int, typer.Option(help="Held-out tokens to evaluate on.")] = DEMO_EVAL_TOKENS,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")] = False,
    resume_from_checkpoint: Annotated[Path | None, typer.Option(help="Continue an interrupted demo.")] = None,
) -> None:
    """Train two SAEs without a k on the bundled language model and text: no network, no account, a few minutes."""
    if "sae_lens" not in sys.modules:
        print("loading torch and SAELens ...", file=sys.stderr, flush=True)
    from sae_lens_afa.demo.evaluation import table
    from sae_lens_afa.demo.run import run_demo

    results = run_demo(
        output, tokens=tokens, eval_tokens=eval_tokens, device=device, overwrite=overwrite,
        resume_from_checkpoint=resume_from_checkpoint,
    )  # fmt: skip
    print(f"\n{table(results)}\n\nsaved in {' and '.join(r.folder for r in results)}; load one with")
    print(f'  import sae_lens_afa; from sae_lens import SAE; sae = SAE.load_from_disk("{results[0].folder}")')


# The flags and their help are those of SAELens' runner: it parses them, and it answers --help.
@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(ctx: typer.Context) -> None:
    """Train an SAE of any architecture (--architecture afa_threshold ...): every flag of SAELens' runner, see --help.

    --resume-from-checkpoint FOLDER on its own continues a run with its own settings.
    """
    from sae_lens_afa._cli_train import show_warning, train_command

    warnings.showwarning = show_warning
    print(train_command(ctx.args))


@app.command("eval")
def evaluate(
    sae: Annotated[
        list[Path] | None, typer.Option(help="Folder of an SAE or training checkpoint; may be given several times.")
    ] = None,
    release: Annotated[str | None, typer.Option(help="SAELens release or Hub repository.")] = None,
    sae_id: Annotated[list[str] | None, typer.Option(help="SAE of the release; may be given several times.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The demo's SAEs on their model and held-out text.")] = False,
    model: Annotated[str | None, typer.Option(help="Model name or folder. Default: the SAE's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id, folder or file. Default: the SAE's.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook point. Default: each SAE's.")] = None,
    context_size: Annotated[int | None, typer.Option(help="Tokens of a prompt. Default: the SAE's.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read.")] = EVAL_TOKENS,
    batch_size_prompts: Annotated[int, typer.Option(help="Prompts per forward pass.")] = PROMPTS,
    cross_entropy_tokens: Annotated[
        int, typer.Option(help="On so many of the tokens, the model's cross-entropy with the SAE in place too.")
    ] = 0,
    position: Annotated[list[int] | None, typer.Option(help="Judge this position only; -1 is the last.")] = None,
    exclude_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--exclude-special-tokens/--include-special-tokens", help="Leave them out or not. Default: as in training."
        ),
    ] = None,
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
    from sae_lens_afa.evals.command import EvalRequest, eval_command

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
    from sae_lens_afa.evals.report import read_report, write_plots

    for file in write_plots(read_report(folder), output or folder, formats or ("png", "html")):
        print(file)


app.add_typer(share)
app.add_typer(sweep, name="sweep")


def main() -> None:
    """Run the command; a failure is one line on stderr and exit code 1, or 2 for a call that cannot be parsed."""
    args = sys.argv[1:]
    verb_args = args[: args.index("--")] if "--" in args else args
    debug = _DEBUG in verb_args
    code = 0
    try:
        _run([arg for arg in verb_args if arg != _DEBUG] + args[len(verb_args) :])
        sys.stdout.flush()
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("\ninterrupted", file=sys.stderr)
        code = _INTERRUPTED
    except _UsageError as error:
        print(describe_usage(error), file=sys.stderr)
        code = _WRONG_CALL
    except Exception as error:
        code = _failed(error, debug=debug)
    if code:
        sys.exit(code)


def _run(args: list[str]) -> None:
    # Not `app()`: it prints a box for a wrong call, and ends without a word where any connection breaks.
    command = typer.main.get_command(app)
    with command.make_context(_NAME, args or ["--help"]) as context:
        command.invoke(context)


def _failed(error: Exception, *, debug: bool) -> int:
    """Say what went wrong; returns the exit code."""
    _drop_output()
    if isinstance(error, BrokenPipeError) and is_raised_here(error):  # by print: `sae-lens-afa list ... | head`
        return _FAILED
    if debug:
        traceback.print_exception(error)
    if _is_interruption(error):
        print(f"\n{error}", file=sys.stderr)
        if error.checkpoint is not None:
            verb = next((arg for arg in sys.argv[1:] if arg in ("demo", "train")), "train")
            print(
                f"continue with: {_NAME} {verb} --resume-from-checkpoint {error.checkpoint}"
                + (" (and the other options as before)" if verb == "demo" else ""),
                file=sys.stderr,
            )
        return _INTERRUPTED
    print(f"error: {describe(error)}", file=sys.stderr)
    return _FAILED


def _is_interruption(error: Exception) -> TypeIs[TrainingInterrupted]:
    # Where the runner is not loaded, nothing was trained.
    runner = sys.modules.get("sae_lens_afa.runner")
    return runner is not None and isinstance(error, runner.TrainingInterrupted)


def _drop_output() -> None:
    """Send what is left in stdout's buffer nowhere, or Python would complain of it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
