"""One colour and marker for each architecture, the same in every plot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip


class Style(NamedTuple):
    """How a series is drawn.

    Attributes:
        color: Of its line and its points.
        marker: matplotlib's name of their shape.
        symbol: plotly's name of it.
        dashed: Whether the line is broken.
    """

    color: str
    marker: str
    symbol: str
    dashed: bool = False


_SHAPES = (
    ("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"), ("P", "cross"),
    ("X", "x"), ("<", "triangle-left"), (">", "triangle-right"), ("p", "pentagon"), ("h", "hexagon"), ("*", "star"),
)  # fmt: skip
# The palette's colours to those that are compared most often; then what is still far from all of them.
_COLORS = {
    "top_afa": VERMILION,
    "topk": BLUE,
    "batchtopk": GREEN,
    "afa_threshold": PURPLE,
    "jumprelu": ORANGE,
    "gated": SKY,
    "standard": BLACK,
    "afa_pursuit": "#9E0142",
    "matching_pursuit": "#8C564B",
    "mutual_choice": "#66A61E",
    "feature_choice": "#A89000",
    "matryoshka_batchtopk": "#6A3D9A",
    "abstopk": "#8A8A8A",
    "temporal": "#2B2DC4",
    "transcoder": "#00524A",
    "skip_transcoder": "#E7298A",
    "jumprelu_transcoder": "#5E3A00",
    "jumprelu_skip_transcoder": "#00B8C8",
}
_FIXED = {name: Style(color, *_SHAPES[i % len(_SHAPES)]) for i, (name, color) in enumerate(_COLORS.items())}
# Of names that are none of these.
_FURTHER = (
    "#F4A582", "#C3CAD1", "#A6DBA0", "#C2A5CF", "#FDDB6D", "#FFB3C1", "#80CDC1", "#BDB76B", "#3E7A5E", "#B5651D",
    "#6E7F99", "#CFE57A",
)  # fmt: skip


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, no two alike.

    An architecture has its own, always. "topk, published" is a series of `topk`: its colour, broken and with another
    marker. Any other name has one of further colours by its own letters, and the next one where two names would share
    it.
    """
    names = list(dict.fromkeys(names))
    found = {name: _FIXED[name] for name in names if name in _FIXED}
    taken = {style[:3] for style in _FIXED.values()}
    for name in sorted(name for name in names if name not in found):
        of = _FIXED.get(name.partition(",")[0])
        colors = _FURTHER if of is None else (of.color,)
        first = crc32(name.encode()) % len(colors)
        # All colours with one shape before the next shape; where all pairs are taken, two names must be alike.
        candidates = [
            Style(colors[(first + i) % len(colors)], *_SHAPES[(i // len(colors)) % len(_SHAPES)], of is not None)
            for i in range(len(colors) * len(_SHAPES))
        ]
        found[name] = next((style for style in candidates if style[:3] not in taken), candidates[0])
        taken.add(found[name][:3])
    return {name: found[name] for name in names}
