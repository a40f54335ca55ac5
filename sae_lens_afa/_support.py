"""Warnings: ours point at the user's line, SAELens' are left out where they say nothing to the user."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from sae_lens import logger as sae_lens_logger

_PACKAGE = __name__.partition(".")[0]
_EXPECTED_WARNINGS = (
    "The training dataset contains fewer samples",
    "Dataset is not tokenized",
    "All samples in the training dataset have been exhausted",
)


@contextmanager
def expected_messages_off() -> Generator[None]:
    """Leave out what SAELens says of a run with its own model and a small, untokenised text: here both are meant."""

    def unexpected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("You just passed in a", "override_dataset ", "override_model "))

    sae_lens_logger.addFilter(unexpected)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        sae_lens_logger.removeFilter(unexpected)


def warn(message: str) -> None:
    """Warn of what the caller asked for; the warning points at the first line outside this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
