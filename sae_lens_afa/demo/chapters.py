"""The demo's text: the King James Bible, one document a chapter, with a fixed held-out part."""

from __future__ import annotations

import lzma
from importlib.resources import files
from typing import NamedTuple

from datasets import Dataset

from sae_lens_afa.loading.text import text_dataset

HELD_OUT_EVERY = 20
# Name of the part that is trained on, in the metadata of SAEs.
TEXT_NAME = "King James Bible (bundled)"


class DemoText(NamedTuple):
    """Chapters of the bundled text.

    Attributes:
        train: Those that the language model learnt from, and SAEs learn from.
        held_out: Those that neither has seen.

    Example:
        >>> import sae_lens_afa as afa
        >>> train, held_out = afa.demo.load_text()
        >>> len(train), len(held_out)
        (1130, 59)
    """

    train: list[str]
    held_out: list[str]


def load_text() -> DemoText:
    """Read the bundled text: 1,189 chapters, every twentieth of them held out.

    Chapters are documents (verses on lines of their own). The held-out ones (every `HELD_OUT_EVERY`-th,
    so that they come from all books) were used neither for the language model nor for its tokenizer.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.demo.load_text().train[0][:54]
        'In the beginning God created the heaven and the earth.'
    """
    raw = (files("sae_lens_afa.demo") / "kjv.txt.xz").read_bytes()
    chapters = lzma.decompress(raw).decode("ascii").strip().split("\n\n")
    held_out = chapters[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    train = [c for i, c in enumerate(chapters, start=1) if i % HELD_OUT_EVERY]
    return DemoText(train, held_out)


def held_out_dataset() -> Dataset:
    """Return the held-out chapters as a dataset that knows its name."""
    return text_dataset(load_text().held_out, name="King James Bible, held-out chapters")
