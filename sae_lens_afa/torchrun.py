"""The processes that torchrun starts, by the environment that it gives them; imports nothing heavy."""

from __future__ import annotations

import os

_VARIABLES = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def started_this() -> bool:
    """Return whether this process was started by torchrun."""
    return os.environ.keys() >= _VARIABLES


def show_progress_once() -> None:
    """Show progress bars of the first process alone; to be called before anything imports tqdm."""
    if rank() != 0:
        os.environ.setdefault("TQDM_DISABLE", "1")


def size() -> int:
    """Return how many processes torchrun has started; 1 for one alone."""
    return int(os.environ["WORLD_SIZE"]) if started_this() else 1


def rank() -> int:
    """Return the number of this process among those that torchrun has started; 0 for one alone."""
    return int(os.environ["RANK"]) if started_this() else 0
