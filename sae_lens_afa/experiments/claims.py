"""Processes that share a sweep's folder: each takes groups that no other has in work.

A group is taken by a lock on a file, which the system gives back when its process ends in whatever way. So processes
need not know of each other: torchrun may start them, or a person, now or later, on machines that share the folder.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows a folder is for one process
    fcntl = None


@contextmanager
def claimed(folder: Path, name: str, *, wait: bool = False) -> Generator[bool]:
    """Take something of a folder, and yield whether this process has it within the block.

    Args:
        folder: Where its lock is; it must exist.
        name: Of what is taken.
        wait: Until another process gives it back.
    """
    if fcntl is None:
        yield True
        return
    path, ours = folder / f".{name}.lock", False
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = True
        yield ours
    finally:
        if ours:  # who waited for this very file now finds the work done
            path.unlink(missing_ok=True)
        os.close(file)
