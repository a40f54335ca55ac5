"""SAELens' messages that say nothing to the user of a command."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from sae_lens import logger as sae_lens_logger

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
