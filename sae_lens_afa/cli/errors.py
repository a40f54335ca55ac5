"""One line for every failure, in the words of the command: a parameter that a message names becomes a flag."""

from __future__ import annotations

import argparse
import errno
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_afa.loading.names import did_you_mean, first_line

INTERRUPTED = 130  # exit code, as a shell has it of SIGINT
_LONGEST = 400
_NEAR = 0.4  # a flag may be long, and half of it meant
_PACKAGE = str(Path(__file__).parents[1] / "_")[:-1]
# Classes that are known by name: their packages take long to import and are loaded if one of them was raised.
_DAMAGED = {"SafetensorError", "UnpicklingError", "BadZipFile", "LZMAError", "EOFError"}
_HUB = {"huggingface_hub", "httpx", "httpx2", "requests"}
_READERS = {"datasets", "pyarrow", "fsspec"}
_MEMORY = ("out of memory", "not enough memory", "can't allocate", "cannot allocate", "unable to allocate")
_DEVICE = ("cuda", "nvidia", "mps", "hip error")


def describe(error: BaseException, flags: Mapping[str, str]) -> str:
    """Return a failure in one line, without a traceback.

    Args:
        error: Raised by this package or a library below it.
        flags: Flags of the verb that was called, by the parameters that they set.
    """
    return _shortened(in_flags(_described(error), flags))


def in_flags(said: str, flags: Mapping[str, str]) -> str:
    """Return a message of the library with flags in place of the parameters that it names.

    A word that is the name of a parameter is meant as one at the start of the message, with an underscore, with a
    value (`overwrite=True`), after "give", "pass" or "leave out", and in a list after another that is.
    """
    # "give this (on the command line that)": for the reader of a command that comes first.
    said = re.sub(r"give (.+?) \(on the command line:? (.+?)\)", r"give \2 (or \1)", said)
    if not flags:
        return said
    names = "|".join(flags)
    parameter = re.compile(rf"(?<![-\w./'])({names})(=(?:\w+|'[^']*'))?(?![-\w/'])")
    done, end = "", 0
    for match in parameter.finditer(said):
        name, value = match[1], match[2]
        between, before = said[end : match.start()], said[: match.start()]
        listed = end > 0 and between in (", ", " and ", " or ")
        if not (listed or not before or "_" in name or value or re.search(r"(give|pass|\(or|leave out) $", before)):
            continue
        given = "" if value in (None, "=True") else " " + value[1:].strip("'")
        done, end = done + between + flags[name] + given, match.end()
    return done + said[end:]


def describe_usage(error: Any) -> str:
    """Return, of a call that cannot be parsed, what is wrong, the nearest name, and where the right ones are listed.

    Of a group of verbs that was called without one, return its help.

    Args:
        error: typer's (click's) UsageError.
    """
    said, context, kind = str(error.format_message()).strip(), error.ctx, type(error).__name__
    if kind == "NoArgsIsHelpError":
        return said
    if kind == "NoSuchOption" and context is not None:
        flags = [flag for param in context.command.params for flag in (*param.opts, *param.secondary_opts)]
        long = [flag for flag in (*flags, *context.help_option_names) if flag.startswith("--")]
        said = f"{error.message}{did_you_mean(error.option_name, long, n=1, cutoff=_NEAR)}"
    said = said if said.endswith((".", "?")) else f"{said}."
    return _shortened(f"error: {said}" + (f" See {context.command_path} --help." if context is not None else ""))


def _described(error: BaseException) -> str:
    said, lower = first_line(error, whole=True), str(error).lower()
    names = {base.__name__ for base in type(error).__mro__}
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names or _is_runtime(error, lower, _MEMORY):
        return f"not enough memory{_after_colon(said)} Take smaller batches, fewer tokens or a smaller SAE."
    if package in _HUB:
        from sae_lens_afa.hub._errors import explain

        return f"Hugging Face Hub: {explain(error)}" if isinstance(error, Exception) else said
    if names & _DAMAGED or "PytorchStreamReader" in said or "PytorchStreamWriter" in said:
        return f"a file cannot be read or written: it is damaged or of another format, or the disk is full ({said})."
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return f"a file is not what its name says, JSON or text in UTF-8 ({said})."
    if package == "datasets" and isinstance(error.__cause__, Exception):
        return _described(error.__cause__)  # "An error occurred while generating the dataset"
    if _is_runtime(error, lower, _DEVICE):
        return f"the device cannot be used{_after_colon(said)} Try --device cpu."
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.strerror:
        return _of_the_system(error)
    if isinstance(error, (ValueError, OSError, argparse.ArgumentError)) or package in (*_READERS, "sae_lens_afa"):
        return said
    if isinstance(error, TypeError) and is_raised_here(error):
        return said
    key = f"no entry {said}" if isinstance(error, KeyError) else said
    return f"{type(error).__name__}: {key} (unexpected: run it again with --debug for the traceback)"


def _is_runtime(error: BaseException, said: str, words: Sequence[str]) -> bool:
    """Say whether torch means one of these failures: for most of them it has no class of its own."""
    return isinstance(error, (RuntimeError, AssertionError)) and any(word in said for word in words)


def _of_the_system(error: OSError) -> str:
    reason = str(error.strerror)
    if error.errno == errno.ENOSPC:
        reason = "no space left on the disk"
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{reason[:1].lower()}{reason[1:]}"


def is_raised_here(error: BaseException) -> bool:
    """Say whether the innermost frame is in this package, whose messages are written for its users."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _after_colon(said: str) -> str:
    return f": {said}" if said.endswith(".") else f": {said}."


def _shortened(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."
