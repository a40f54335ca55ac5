"""Names that a user gives: paths told from names on the Hub, near misses, errors of libraries in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 300


def is_path(name: str) -> bool:
    """Return whether a name can only be meant as a path: it is there, or no name on the Hub looks like it."""
    return Path(name).exists() or name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def near(name: str, known: Iterable[str]) -> str:
    """Return the names of a long list that are nearest, as the end of a message, or that there is none."""
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=0.4)
    return f"; near matches: {', '.join(matches)}" if matches else "; no name is near it"


def did_you_mean(name: str, known: Iterable[str], *, n: int = 3, cutoff: float = 0.6) -> str:
    """Return what was probably meant, as the end of a sentence; nothing if no name is near."""
    matches = difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def first_line(error: BaseException, *, whole: bool = False) -> str:
    """Return the first line of an error that says something, cut if it is long and not `whole`; else its class."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    said = next((line for line in lines if any(map(str.isalnum, line))), type(error).__name__)
    return said if whole or len(said) <= _LONGEST else said[:_LONGEST] + " ..."


def in_own_words(error: Exception, message: str) -> OSError | ValueError:
    """Return an error to raise in place of a library's: an OSError stays one, any other becomes a ValueError."""
    return (OSError if isinstance(error, OSError) else ValueError)(message)
