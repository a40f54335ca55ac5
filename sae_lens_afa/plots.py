"""Pictures of evaluations: matplotlib figures for files, plotly pages (`save="x.html"`) for the browser.

matplotlib and plotly are imported when a plot is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from sae_lens_afa import _plot_data as data_of
from sae_lens_afa._plot_data import BLACK, BLUE, SERIES_COLORS, VERMILION
from sae_lens_afa.evals.figures import Array
from sae_lens_afa.evals.result import AFAResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["eps_lbo_plot", "l0_plot", "zf_plot"]

P = ParamSpec("P")
Save = str | Path | Sequence[str | Path] | None
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
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def _styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw and save in this module's style, whatever the user's is, and leave the user's as it is."""

    @wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        style: Any = {**matplotlib.rcParamsDefault, **_STYLE}
        with matplotlib.rc_context(style):
            return plot(*args, **kwargs)

    return styled


@_styled
def zf_plot(
    data: AFAResult | Mapping[str, AFAResult] | pd.DataFrame,
    *,
    centered: bool = False,
    max_points: int = 3000,
    title: str | None = None,
    save: Save = None,
) -> Figure:
    """ZF plot: the feature norm of each token against its dense norm, a panel per SAE (arXiv 2503.24277, figure 2).

    Points above the line y = x are over-activated tokens, below it under-activated ones; on the broken lines
    eps (n - 1) is 0.25, 0.5 and 1. Colour is how many tokens lie there. Axes are logarithmic where norms span a
    factor of 20.

    Args:
        data: A result, results by name, or a table of tokens with the columns `dense_norm` and `feature_norm`
            (and `sae` or `layer` for the panels; `context` for the hover text).
        centered: The centred form instead of the paper's.
        max_points: Tokens drawn in a panel, at random if there are more.
        title: Above the figure.
        save: File or files to write: .png, .svg, .pdf, or .html with each token's context on hovering.

    Raises:
        TypeError: `data` is none of these.
        ValueError: there is nothing to plot, or `save` ends in something else.
    """
    form = "centered_" if centered else ""
    groups = data_of.token_groups(data, [f"{form}dense_norm", f"{form}feature_norm"])
    panels = {name: data_of.zf_panel(table, form, max_points) for name, table in groups.items()}
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    size = (3.9, 4.5) if len(panels) == 1 else (2.35 * columns + 0.5, 2.4 * rows + 1.0)
    figure, axes = _figure(rows, columns, size)
    for axis, (name, panel) in zip(axes, panels.items(), strict=False):
        _zf_axis(axis, name, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    minus_bias = " - b‖" if centered else "‖"
    figure.supxlabel(f"dense norm ‖z{minus_bias}", fontsize=10)
    figure.supylabel("feature norm ‖f‖" + ("" if centered else ", bias as a feature"), fontsize=10)
    figure.legend(
        handles=_zf_legend(), loc="outside upper center", ncols=4 if columns > 2 else 2, title=title, handlelength=2.4
    )
    data_of.save_all(save, figure.savefig, lambda path: _html().zf(panels, form, title, path))
    return figure


def _zf_axis(axis: Axes, name: str, panel: data_of.Panel) -> None:
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


def _zf_legend() -> list[Any]:
    from matplotlib.lines import Line2D

    bands = [
        Line2D([], [], color=BLACK, linewidth=0.9, linestyle=style, label=f"ε(n-1) = {level:g}")
        for level, style in _BAND_STYLES.items()
    ]
    return [Line2D([], [], color=BLACK, linewidth=1.1, label="‖f‖ = ‖z‖"), *bands]


@_styled
def eps_lbo_plot(
    data: AFAResult | Mapping[str, AFAResult] | pd.DataFrame,
    *,
    centered: bool = False,
    max_tokens: int = 5000,
    title: str | None = None,
    save: Save = None,
) -> Figure:
    """Half-violins of the normalised MSE (left halves) and the eps-LBO (right halves) of each SAE or layer.

    Both axes are logarithmic; violins are cut at the 0.5 and 99.5 % quantiles. A dot marks the median, a star the
    SAE with the lowest one, a cross that with the highest. NMSE says how much is lost, eps-LBO how far the norms
    are from what a quasi-orthogonal dictionary would give: they need not agree.

    Args:
        data: As for `zf_plot`, with the columns `nmse` and `epsilon_lbo`.
        centered: The eps-LBO of the centred form instead of the paper's.
        max_tokens: Tokens whose density is drawn for each SAE, at random if there are more; medians are of all.
        title: Above the figure.
        save: As for `zf_plot`.

    Raises:
        TypeError: `data` is none of these.
        ValueError: there is nothing to plot, or `save` ends in something else.
    """
    lbo = "centered_epsilon_lbo" if centered else "epsilon_lbo"
    groups = data_of.token_groups(data, ["nmse", lbo])
    names = list(groups)
    figure, (axis,) = _figure(1, 1, (max(4.5, 0.72 * len(names) + 2.0), 4.2))
    twin = axis.twinx()
    twin.spines["right"].set_visible(True)
    for side, ax, column, color, label in (
        (-1, axis, "nmse", BLUE, "normalised MSE  ‖z - ẑ‖² / ‖z‖²"),
        (1, twin, lbo, VERMILION, "ε-LBO"),
    ):
        values = [_positive(table, column) for table in groups.values()]
        _half_violins(ax, values, side, color, max_tokens)
        ax.set_yscale("log")
        ax.set_ylabel(label, color=color)
        ax.tick_params(axis="y", which="both", colors=color)
    axis.set(xlim=(-0.6, len(names) - 0.4))
    shown = [name.removeprefix("layer ") for name in names]
    layers = shown != names
    axis.set_xticks(range(len(names)), shown, rotation=0 if layers or len(names) < 5 else 30, ha="center")
    if layers:
        axis.set_xlabel("layer")
    figure.legend(handles=_violin_legend(), loc="outside upper center", ncols=5, title=title)
    data_of.save_all(save, figure.savefig, lambda path: _html().half_violins(groups, lbo, title, path))
    return figure


def _half_violins(axis: Axes, values: Sequence[Array], side: int, color: str, max_tokens: int) -> None:
    medians = [float(np.median(group)) for group in values]
    generator = np.random.default_rng(0)
    for place, group in enumerate(values):
        some = group if len(group) <= max_tokens else generator.choice(group, max_tokens, replace=False)
        grid, density = data_of.log_density(some)
        inner, outer = place + 0.03 * side, place + side * (0.03 + 0.41 * density)
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


def _violin_legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [("o", "median", 4), ("*", "best", 10), ("X", "worst", 7)]
    return [
        Patch(color=BLUE, alpha=0.4, label="NMSE"),
        Patch(color=VERMILION, alpha=0.4, label="ε-LBO"),
        *(
            Line2D([], [], color="#555555", marker=marker, linestyle="", markersize=size, label=label)
            for marker, label, size in marks
        ),
    ]


@_styled
def l0_plot(
    data: Mapping[str, Sequence[AFAResult]] | pd.DataFrame,
    *,
    loss: str = "nmse_mean",
    d_in: int | None = None,
    title: str | None = None,
    save: Save = None,
) -> Figure:
    """Loss against L0 with a line per architecture: what is lost at how many active features.

    Args:
        data: A table with the columns `architecture`, `l0` and `loss` (and `layer` for panels, `label` for the
            hover text), a row per SAE; or results by architecture.
        loss: Which figure of the results is the loss; also the label of the axis.
        d_in: Draw a line there: a code with more active features than dimensions is not sparse.
        title: Above the figure.
        save: As for `zf_plot`.

    Raises:
        TypeError: `data` is none of these.
        ValueError: a column is missing, or there is nothing to plot, or `save` ends in something else.
    """
    table = _frontier(data, loss)
    by_layer = list(table.groupby("layer", sort=False)) if "layer" in table.columns else [("", table)]
    columns = min(len(by_layer), 3)
    rows = -(-len(by_layer) // columns)
    figure, axes = _figure(rows, columns, (3.1 * columns + 1.6, 3.0 * rows + 0.6), sharey=True)
    architectures = list(dict.fromkeys(table["architecture"]))
    for axis, (layer, part) in zip(axes, by_layer, strict=False):
        for i, name in enumerate(architectures):
            line = data_of.architecture_rows(part, name)
            axis.plot(
                [row["l0"] for row in line], [row["loss"] for row in line], label=name, color=SERIES_COLORS[i % len(SERIES_COLORS)],
                marker=_MARKERS[i % len(_MARKERS)], markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
                linewidth=1.3,
            )  # fmt: skip
        if d_in is not None:
            axis.axvline(d_in, color="#777777", linewidth=0.8, linestyle=(0, (4, 3)), label=f"L0 = d_in = {d_in}")
        axis.set(xscale="log", yscale="log", title="" if layer == "" else f"layer {layer}")
        for ticks in (axis.xaxis, axis.yaxis):
            _plain_ticks(ticks)
    for axis in axes[len(by_layer) :]:
        axis.set_visible(False)
    figure.supxlabel("active features per token (L0)", fontsize=10)
    figure.supylabel(loss if isinstance(data, Mapping) else "loss", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, title=title)
    data_of.save_all(save, figure.savefig, lambda path: _html().frontier(by_layer, architectures, d_in, title, path))
    return figure


def _plain_ticks(axis: Any) -> None:
    """1, 3, 10, 30, ... as plain numbers where an axis spans little, else powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = sorted(axis.get_view_interval())
    if low >= 1e-3 and high / low < 1e3:
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _frontier(data: object, loss: str) -> pd.DataFrame:
    """Rows with architecture, l0 and loss."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        table = data
    elif isinstance(data, Mapping):
        table = pd.DataFrame(
            [
                {"architecture": str(name), "l0": result.l0_mean, "loss": getattr(result, loss)}
                for name, results in data.items()
                for result in results
            ]
        )
    else:
        raise TypeError(f"expected a mapping of architecture -> results or a DataFrame, got {type(data).__name__}.")
    if missing := [name for name in ("architecture", "l0", "loss") if name not in table.columns]:
        raise ValueError(f"nothing to plot: the table has no columns {missing}, only {list(table.columns)}.")
    table = table.dropna(subset=["l0", "loss"])
    if len(table) == 0:
        raise ValueError("nothing to plot: no row has both an L0 and a loss.")
    return table


def _positive(table: pd.DataFrame, column: str) -> Array:
    """Defined values; those that are 0 cannot be shown on a logarithmic axis and count as the smallest that is not."""
    values = data_of.column_of(table, column)
    values = values[~np.isnan(values)]
    if not (values > 0).any():
        raise ValueError(f"nothing to plot: no value of {column!r} is above 0.")
    return np.maximum(values, values[values > 0].min())


def _figure(rows: int, columns: int, size: tuple[float, float], *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(hspace=0.04, wspace=0.03), dpi=130)
    axes: Any = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, list(axes.flat)


def _html() -> Any:
    from sae_lens_afa import _plot_html

    return _plot_html
