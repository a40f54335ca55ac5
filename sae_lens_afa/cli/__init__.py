"""The command `sae-lens-afa`: one module a verb, each of which hands its options by name to a public function.

What a verb calls is imported where it runs, so that --help and the verbs that only read files start at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typing_extensions import TypeIs

from sae_lens_afa import torchrun
from sae_lens_afa.cli import (
    convert,
    demo,
    evaluate,
    export,
    features,
    info,
    list_saes,
    plot,
    pull,
    push,
    saebench,
    sweep,
    train,
)
from sae_lens_afa.cli.errors import INTERRUPTED, describe, describe_usage, is_raised_here

if TYPE_CHECKING:
    from sae_lens_afa.runner import TrainingInterrupted

_NAME = "sae-lens-afa"
_FAILED, _WRONG_CALL = 1, 2
_DEBUG = "--debug"
# Verbs whose work the processes of torchrun share.
_SHARED = ("train", "eval", "features", "sweep")
# click's or, in newer versions, typer's own.
_UsageError = cast(type[Exception], typer.BadParameter.__bases__[0])

app = typer.Typer(
    name=_NAME,
    help="Sparse autoencoders that choose their own number of active features per token.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo.demo)
# The flags and their help are those of SAELens' runner: its parser reads them, and answers --help.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    train.train
)
app.command("eval")(evaluate.evaluate)
app.command()(plot.plot)
app.command()(features.features)
app.command()(push.push)
app.command()(pull.pull)
app.command("list")(list_saes.list_saes)
app.command()(info.info)
app.command()(export.export)
app.command()(convert.convert)
app.command()(saebench.saebench)
app.add_typer(sweep.sweep, name="sweep")


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Options of all verbs."""
    del debug  # `main` has looked for it
    verb = context.invoked_subcommand
    if torchrun.size() > 1 and verb not in _SHARED:
        raise ValueError(
            f"{verb} is the work of one process, and torchrun started {torchrun.size()}: call {_NAME} {verb} without"
            f" torchrun, which is for {', '.join(_SHARED)}."
        )


def main() -> None:
    """Run the command; a failure is one line on stderr and exit code 1, or 2 for a call that cannot be parsed."""
    args = sys.argv[1:]
    verb_args = args[: args.index("--")] if "--" in args else args
    debug = _DEBUG in verb_args
    args = [arg for arg in verb_args if arg != _DEBUG] + args[len(verb_args) :]
    command = typer.main.get_command(app)
    code = 0
    warnings.showwarning = _show_warning
    try:
        _run(command, args)
        sys.stdout.flush()
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("\ninterrupted", file=sys.stderr)
        code = INTERRUPTED
    except _UsageError as error:
        print(describe_usage(error), file=sys.stderr)
        code = _WRONG_CALL
    except Exception as error:
        code = _failed(error, _flags(command, args), debug=debug)
    if code:
        sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning as a line of the command, above a progress bar and without the place in the code."""
    if issubclass(category, UserWarning):
        from tqdm import tqdm

        tqdm.write(f"warning: {message}", file=sys.stderr)


def _run(command: Any, args: list[str]) -> None:
    # Not `app()`: it prints a box for a wrong call, and ends without a word where any connection breaks.
    with command.make_context(_NAME, args or ["--help"]) as context:
        command.invoke(context)


def _flags(command: Any, args: list[str]) -> dict[str, str]:
    """Return the flags of the verb that was called, by the parameters that they set."""
    for arg in args:
        if not hasattr(command, "commands"):
            break
        command = command.commands[arg]
    if command.name == "train":
        return train.FLAGS
    return {param.name: param.opts[0] for param in command.params if param.opts[0].startswith("--")}


def _failed(error: Exception, flags: dict[str, str], *, debug: bool) -> int:
    """Say what went wrong, and return the exit code."""
    unread = not _finish_output()
    if isinstance(error, BrokenPipeError) and (unread or is_raised_here(error)):  # `sae-lens-afa list ... | head`
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
        return INTERRUPTED
    rank = f"rank {torchrun.rank()}: " if torchrun.started_this() else ""
    print(f"{rank}error: {describe(error, flags)}", file=sys.stderr)
    return _FAILED


def _is_interruption(error: Exception) -> TypeIs[TrainingInterrupted]:
    # Where the runner is not loaded, nothing was trained.
    runner = sys.modules.get("sae_lens_afa.runner")
    return runner is not None and isinstance(error, runner.TrainingInterrupted)


def _finish_output() -> bool:
    """Write what is left in stdout's buffer; where nobody takes it, drop it, or Python would complain when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
