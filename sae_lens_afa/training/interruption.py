"""SIGINT and SIGTERM while an SAE trains: noted, and obeyed between two steps."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sae_lens.training._interruption import InterruptedException


class TrainingInterrupted(InterruptedException):
    """End of a training that was stopped by SIGINT or SIGTERM after a whole step; a subclass of SAELens' own exception.

    Attributes:
        checkpoint: The checkpoint from which the run can be resumed; None if the run keeps no checkpoints.

    Example:
        >>> from sae_lens_afa.runner import TrainingInterrupted
        >>> try:
        ...     raise TrainingInterrupted(None)  # as `run` does on Ctrl-C
        ... except TrainingInterrupted as stopped:
        ...     print(stopped)
        training interrupted, no checkpoint saved (checkpoint_path is None)
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        saved = f"checkpoint saved in {checkpoint}" if checkpoint else "no checkpoint saved (checkpoint_path is None)"
        super().__init__(f"training interrupted, {saved}")


@contextmanager
def stop_request() -> Generator[list[int]]:
    """Yield a list that is empty until SIGINT or SIGTERM arrives; a second signal acts as if nobody listened."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
        received.append(number)
        restore()
        print("\nstopping after this step (once more: at once, without a checkpoint)", file=sys.stderr, flush=True)

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
