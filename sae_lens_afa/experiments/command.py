"""What the command prints of a sweep, and how it says that one was stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.experiments.sweep import Sweep, run_sweep

_INTERRUPTED = 130


def run_command(sweep: Sweep, output: Path, command: str, *, progress: bool = True) -> str:
    """Run a sweep to its end, and say what came out and where it is.

    Raises:
        ValueError, OSError: the output folder is of another sweep, or cannot be written.
        SystemExit: stopped with Ctrl-C, after saying how to go on.
    """
    try:
        with expected_messages_off():
            result = run_sweep(sweep, output, command=command, progress=progress)
    except KeyboardInterrupt:
        print(f"\nstopped; finished runs are kept in {output}: the same command goes on", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    assert result is not None  # only max_groups stops it early
    files = "\n".join(f"  {file}" for file in result.files)
    return f"\n{result}\n\nwritten:\n{files}"
