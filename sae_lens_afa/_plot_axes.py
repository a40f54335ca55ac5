"""What the matplotlib figures are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from sae_lens_afa import _plot_data as data_of
from sae_lens_afa._plot_data import BLACK, BLUE, VERMILION
from sae_lens_afa.evals.figures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#555555",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.title_fontsize": 11,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_BAND_STYLES = {0.25: (0, (5, 2)), 0.5: (0, (4, 2, 1, 2)), 1.0: (0, (1, 1.5))}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw and save in this module's style, whatever the user's is, and leave the user's as it is."""

    @wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        style: Any = {**matplotlib.rcParamsDefault, **_STYLE}
        with matplotlib.rc_context(style):
            return plot(*args, **kwargs)

    return styled


def figure(rows: int, columns: int, size: tuple[float, float], *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    made = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.04, wspace=0.03), dpi=130)
    axes: Any = made.subplots(rows, columns, squeeze=False, sharey=sharey)
    return made, list(axes.flat)


def zf_axis(axis: Axes, name: str, panel: data_of.Panel) -> None:
    """Draw one ZF panel."""
    if panel.log:
        axis.set_xscale("log")
        axis.set_yscale("log")
    ends = np.array([panel.low, panel.high])
    axis.plot(ends, ends, color=BLACK, linewidth=1, zorder=3)
    for level, slope in data_of.bands():
        axis.plot(ends, ends * slope, color=BLACK, linewidth=0.8, linestyle=_BAND_STYLES[level], zorder=3)
    x, y = (np.log(panel.z), np.log(panel.f)) if panel.log else (panel.z, panel.f)
    density = data_of.point_density(x, y)
    order = np.argsort(density)
    axis.scatter(
        panel.z[order], panel.f[order], c=density[order], cmap="viridis", vmin=0, vmax=1.1,
        s=float(np.clip(4000 / max(1, len(order)), 2, 14)), linewidths=0, alpha=0.75, rasterized=True, zorder=2,
    )  # fmt: skip
    axis.set(xlim=(panel.low, panel.high), ylim=(panel.low, panel.high), aspect="equal", title=name)
    if panel.n_outside:
        axis.text(
            0.97, 0.04, f"{panel.n_outside} of {len(panel.z)} outside", transform=axis.transAxes,
            ha="right", fontsize=7, color="#444444", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip


def zf_legend() -> list[Any]:
    """The lines of the ZF plot."""
    from matplotlib.lines import Line2D

    bands = [
        Line2D([], [], color=BLACK, linewidth=0.9, linestyle=style, label=f"ε(n-1) = {level:g}")
        for level, style in _BAND_STYLES.items()
    ]
    return [Line2D([], [], color=BLACK, linewidth=1.1, label="‖f‖ = ‖z‖"), *bands]


def half_violins(axis: Axes, values: Sequence[Array], side: int, color: str, max_tokens: int) -> None:
    """Draw one side of the violins, a place of the x axis for each group of values."""
    medians = [float(np.median(group)) for group in values]
    generator = np.random.default_rng(0)
    for place, group in enumerate(values):
        some = group if len(group) <= max_tokens else generator.choice(group, max_tokens, replace=False)
        grid, density = data_of.log_density(some)
        inner, outer = place + 0.02 * side, place + side * (0.02 + 0.42 * density)
        axis.fill_betweenx(grid, inner, outer, color=color, alpha=0.35, linewidth=0)
        axis.plot(outer, grid, color=color, linewidth=0.8)
    best, worst = int(np.argmin(medians)), int(np.argmax(medians))
    for place, median in enumerate(medians):
        marker, size = ("o", 5)
        if best != worst and place in (best, worst):
            marker, size = ("*", 14) if place == best else ("X", 9.5)
        axis.plot(
            place + 0.15 * side, median, marker, color=color, markersize=size,
            markeredgecolor="white", markeredgewidth=0.9, zorder=5,
        )  # fmt: skip


def violin_legend(*, ranked: bool) -> list[Any]:
    """The two sides and their marks; best and worst only where there are several to rank."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [("o", "median", 4), ("*", "best", 10), ("X", "worst", 7)][: 3 if ranked else 1]
    return [
        Patch(color=BLUE, alpha=0.4, label="NMSE"),
        Patch(color=VERMILION, alpha=0.4, label="ε-LBO"),
        *(
            Line2D([], [], color="#555555", marker=marker, linestyle="", markersize=size, label=label)
            for marker, label, size in marks
        ),
    ]


def plain_ticks(axis: Any) -> None:
    """1, 3, 10, 30, ... as plain numbers where an axis spans little, else powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = sorted(axis.get_view_interval())
    if low >= 1e-3 and high / low < 1e3:
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
