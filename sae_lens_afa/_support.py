"""What demo and evaluations share beside the mathematics: devices, texts, SAELens' messages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from datasets import Dataset
from sae_lens import logger as sae_lens_logger

_EXPECTED_WARNINGS = (
    "The training dataset contains fewer samples",
    "Dataset is not tokenized",
    "All samples in the training dataset have been exhausted",
)


def check_device(device: str) -> None:
    """Raise ValueError unless tensors can be made on `device`."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason} Try --device cpu.") from error


def text_dataset(texts: Sequence[str]) -> Dataset:
    """Texts as the dataset that SAELens' store reads."""
    return Dataset.from_dict({"text": list(texts)})


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
