"""Parts of the matplotlib figures: axes, lines, violins, labels and legends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from sae_lens_afa.evals.moments import Array
from sae_lens_afa.plots import data as data_of
from sae_lens_afa.plots.styles import BLACK, BLUE, VERMILION, Style

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
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_BAND_STYLES = {0.25: (0, (5, 2)), 0.5: (0, (4, 2, 1, 2)), 1.0: (0, (1, 1.5))}
_GREY = "#777777"
_TITLE_SIZE = 11


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
    """Make a figure and its axes, row by row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    made = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.04, wspace=0.03), dpi=130)
    axes: Any = made.subplots(rows, columns, squeeze=False, sharey=sharey)
    return made, list(axes.flat)


def text_size(figure: Figure, text: str, fontsize: float) -> tuple[float, float]:
    """Return the width and the height of a text in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    artist = Text(0, 0, text, fontsize=fontsize, parse_math=False, figure=figure)
    extent = artist.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    return extent.width / figure.dpi, extent.height / figure.dpi


def wrapped(figure: Figure, text: str, width: float, fontsize: float) -> str:
    """Return the text in lines of at most `width` inches; long words are broken behind a sign, or where they must."""

    def fits(line: str) -> bool:
        return text_size(figure, line, fontsize)[0] <= width

    lines: list[str] = []
    for given in text.split("\n"):
        line = ""
        for word in given.split(" "):
            longer = f"{line} {word}" if line else word
            if fits(longer):
                line = longer
                continue
            lines += [line] if line else []
            line = word
            while not fits(line) and len(line) > 1:
                end = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or fits(line[:n]))
                behind_a_sign = 1 + max(line.rfind(sign, 0, end) for sign in "/_-.,")
                end = behind_a_sign if 2 * behind_a_sign > end else end
                lines.append(line[:end])
                line = line[end:]
        lines.append(line)
    return "\n".join(lines)


def set_panel_titles(figure: Figure, titles: Sequence[tuple[Axes, str]], width: float) -> None:
    """Write the titles of panels of `width` inches, and make room for their lines beyond the first."""
    made = [(axis, wrapped(figure, title, width, 9)) for axis, title in titles]
    lines: dict[int, int] = {}
    for axis, text in made:
        axis.set_title(text, parse_math=False)
        row = axis.get_subplotspec().rowspan.start  # pyright: ignore[reportOptionalMemberAccess]
        lines[row] = max(lines.get(row, 0), text.count("\n"))
    full, height = figure.get_size_inches()
    figure.set_size_inches(full, height + 0.16 * sum(lines.values()))


def set_labels(figure: Figure, x: str, y: str) -> None:
    """Write the labels of all x and all y axes, in as many lines as they need."""
    width, height = figure.get_size_inches()
    figure.supxlabel(wrapped(figure, x, width - 0.6, 10), fontsize=10)
    figure.supylabel(wrapped(figure, y, height - 0.6, 10), fontsize=10)


def legend_above(figure: Figure, handles: Sequence[Any], columns: int, title: str | None) -> None:
    """Write the title and a legend below it, and make room for the title's lines."""
    # As the legend's title: constrained layout puts a figure's own title over a legend.
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.4)
    if title:
        width, height = figure.get_size_inches()
        text = wrapped(figure, title, width - 0.9, _TITLE_SIZE)  # clear of the label of the y axes
        figure.set_size_inches(width, height + text_size(figure, text, _TITLE_SIZE)[1])
        legend.set_title(text)
        legend.get_title().set(parse_math=False, multialignment="center", fontsize=_TITLE_SIZE)


def legend_beside(figure: Figure, handles: Sequence[Any], title: str | None) -> None:
    """Write the title over the panels, and right of them a legend, for which the figure becomes wider."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    panels, height = figure.get_size_inches()
    legend = figure.legend(handles=handles, loc="outside right upper")
    extent = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    width = panels + extent.width / figure.dpi
    if title:
        text = wrapped(figure, title, panels - 0.9, _TITLE_SIZE)
        height += text_size(figure, text, _TITLE_SIZE)[1]
        figure.suptitle(text, x=panels / width / 2, fontsize=_TITLE_SIZE, parse_math=False)
    figure.set_size_inches(width, max(height, extent.height / figure.dpi + 0.3))


def zf_axis(axis: Axes, panel: data_of.Panel) -> None:
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
    axis.set(xlim=(panel.low, panel.high), ylim=(panel.low, panel.high), aspect="equal")
    if panel.notes:
        axis.text(
            0.97, 0.04, "\n".join(panel.notes), transform=axis.transAxes,
            ha="right", fontsize=7, color="#444444", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip


def frontier_axis(axis: Axes, panel: data_of.Frontier, styles: Mapping[str, Style]) -> None:
    """Draw one panel of a frontier, and the values of both that are to be marked."""
    for name, rows in panel.rows.items():
        axis.plot([row[panel.x] for row in rows], [row["loss"] for row in rows], label=name, **_series(styles[name]))
    axis.set(xscale="log", yscale="log")
    mark: dict[str, Any] = {"color": _GREY, "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
    for name, value in panel.lines.items():
        axis.axvline(value, **mark)
        axis.annotate(
            name, (value, 1), xycoords=("data", "axes fraction"), xytext=(-2, 0), textcoords="offset points",
            fontsize=8, color=_GREY, rotation=90, va="top", ha="right",
        )  # fmt: skip
    if panel.level is not None:
        axis.axhline(panel.level, **mark)
    for ticks in (axis.xaxis, axis.yaxis):
        plain_ticks(ticks)


def frontier_legend(styles: Mapping[str, Style], n_nonfinite: Mapping[str, int]) -> list[Any]:
    """Return legend entries of the architectures, with the number of tokens left out of their metrics."""
    from matplotlib.lines import Line2D

    labels = {name: "\n".join(filter(None, (name, data_of.left_out(n_nonfinite.get(name, 0))))) for name in styles}
    return [Line2D([], [], label=labels[name], **_series(style)) for name, style in styles.items()]


def _series(style: Style) -> dict[str, Any]:
    """Return matplotlib's arguments for a line in this style."""
    return {
        "color": style.color, "marker": style.marker, "markersize": 5.5, "markeredgecolor": "white",
        "markeredgewidth": 0.6, "linewidth": 1.3, "linestyle": (0, (4, 1.5)) if style.dashed else "-",
    }  # fmt: skip


def zf_legend() -> list[Any]:
    """Return legend entries of the lines in the ZF plot."""
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
    """Return legend entries of the two sides and their marks; best and worst only where there are several to rank."""
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
    """Label an axis that spans little with 1, 3, 10, 30, ..., any other with powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = sorted(axis.get_view_interval())
    if low >= 1e-3 and high / low < 1e3:
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def pages() -> Any:
    """Return the module that writes pages; plotly is imported only for them."""
    from sae_lens_afa.plots import pages

    return pages
