"""One colour and marker for each architecture, the same in every plot."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import NamedTuple
from zlib import crc32

from sae_lens_afa.architectures import ARCHITECTURES

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, VERMILION, GREEN, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#222222",
)  # fmt: skip


class Style(NamedTuple):
    """Colour, marker and line of a series.

    Attributes:
        color: Colour of its line and its points.
        marker: matplotlib's name of the points' shape.
        symbol: plotly's name of it.
        dashed: True for a broken line.
    """

    color: str
    marker: str
    symbol: str
    dashed: bool = False


# plotly's names of matplotlib's markers.
_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
    "X": "x", "<": "triangle-left", ">": "triangle-right", "p": "pentagon", "h": "hexagon", "*": "star",
}  # fmt: skip
_OWN_MARKERS = "oDph<"
# SAELens' own architectures: the palette's colours to those that are compared most often, then what is still far from
# all of them.
_OTHERS = {
    "topk": (BLUE, "s"),
    "batchtopk": (GREEN, "^"),
    "jumprelu": (ORANGE, "v"),
    "gated": (SKY, "P"),
    "standard": (BLACK, "X"),
    "matching_pursuit": ("#8C564B", ">"),
    "matryoshka_batchtopk": ("#6A3D9A", "*"),
    "abstopk": ("#8A8A8A", "o"),
    "temporal": ("#2B2DC4", "s"),
    "transcoder": ("#00524A", "^"),
    "skip_transcoder": ("#E7298A", "D"),
    "jumprelu_transcoder": ("#5E3A00", "v"),
    "jumprelu_skip_transcoder": ("#00B8C8", "P"),
}
_OWN = {entry.name: (entry.color, marker) for entry, marker in zip(ARCHITECTURES, cycle(_OWN_MARKERS), strict=False)}
_FIXED = {name: Style(color, marker, _SYMBOLS[marker]) for name, (color, marker) in (_OWN | _OTHERS).items()}
# Colours of names that are none of these.
_FURTHER = (
    "#F4A582", "#C3CAD1", "#A6DBA0", "#C2A5CF", "#FDDB6D", "#FFB3C1", "#80CDC1", "#BDB76B", "#3E7A5E", "#B5651D",
    "#6E7F99", "#CFE57A",
)  # fmt: skip


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, no two alike.

    An architecture has its own, always. "topk, published" is a series of `topk`: its colour, broken and with another
    marker. Any other name has one of further colours by its own letters, and the next one where two names would share
    it.
    """
    names, shapes = list(dict.fromkeys(names)), list(_SYMBOLS.items())
    found = {name: _FIXED[name] for name in names if name in _FIXED}
    taken = {style[:3] for style in _FIXED.values()}
    for name in sorted(name for name in names if name not in found):
        of = _FIXED.get(name.partition(",")[0])
        colors = _FURTHER if of is None else (of.color,)
        first = crc32(name.encode()) % len(colors)
        # All colours with one shape before the next shape; where all pairs are taken, two names must be alike.
        candidates = [
            Style(colors[(first + i) % len(colors)], *shapes[(i // len(colors)) % len(shapes)], of is not None)
            for i in range(len(colors) * len(shapes))
        ]
        found[name] = next((style for style in candidates if style[:3] not in taken), candidates[0])
        taken.add(found[name][:3])
    return {name: found[name] for name in names}
