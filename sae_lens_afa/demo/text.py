"""The demo's text: the King James Bible, one document a chapter, with a fixed held-out part."""

from __future__ import annotations

import lzma
from importlib.resources import files
from typing import NamedTuple

HELD_OUT_EVERY = 20


class DemoText(NamedTuple):
    """Chapters of the bundled text: those the language model learnt from and those it never saw."""

    train: list[str]
    held_out: list[str]


def load_text() -> DemoText:
    """Read the bundled text: 1,189 chapters, every twentieth of them held out.

    Chapters are documents (verses on lines of their own). The held-out ones (every `HELD_OUT_EVERY`-th,
    so that they come from all books) were used neither for the language model nor for its tokenizer.
    """
    raw = (files("sae_lens_afa.demo") / "kjv.txt.xz").read_bytes()
    chapters = lzma.decompress(raw).decode("ascii").strip().split("\n\n")
    held_out = chapters[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    train = [c for i, c in enumerate(chapters, start=1) if i % HELD_OUT_EVERY]
    return DemoText(train, held_out)
