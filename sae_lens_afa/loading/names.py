"""Names that a user gives: paths told from names on the Hub, near misses, errors of libraries in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 300


def is_path(name: str) -> bool:
    """Whether a name can only be meant as a path: it is there, or no name on the Hub looks like it."""
    return Path(name).exists() or name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def near(name: str, known: Iterable[str], *, cutoff: float = 0.4) -> str:
    """The nearest of the names that exist, as the end of a message."""
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=cutoff)
    return f"; near matches: {', '.join(matches)}" if matches else "; no name is near it"


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line that is not too long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return said if len(said) <= _LONGEST else said[:_LONGEST] + " ..."
