"""Pictures of evaluations: matplotlib figures for files, plotly pages (`save="x.html"`) for the browser.

matplotlib and plotly are imported when a plot is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_lens_afa import _plot_axes as axes_of
from sae_lens_afa import _plot_data as data_of
from sae_lens_afa._plot_data import BLUE, SERIES_COLORS, VERMILION
from sae_lens_afa.evals.figures import Array
from sae_lens_afa.evals.result import AFAResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["eps_lbo_plot", "l0_plot", "zf_plot"]

Save = str | Path | Sequence[str | Path] | None


@axes_of.styled
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
    figure, axes = axes_of.figure(rows, columns, size)
    for axis, (name, panel) in zip(axes, panels.items(), strict=False):
        axes_of.zf_axis(axis, name, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    minus_bias = " - b‖" if centered else "‖"
    figure.supxlabel(f"dense norm ‖z{minus_bias}", fontsize=10)
    figure.supylabel("feature norm ‖f‖" + ("" if centered else ", bias as a feature"), fontsize=10)
    figure.legend(
        handles=axes_of.zf_legend(),
        loc="outside upper center",
        ncols=4 if columns > 2 else 2,
        title=title,
        handlelength=2.4,
    )
    data_of.save_all(save, figure.savefig, lambda path: _html().zf(panels, form, title, path))
    return figure


@axes_of.styled
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
    figure, (axis,) = axes_of.figure(1, 1, (max(4.5, 0.72 * len(names) + 2.0), 4.2))
    twin = axis.twinx()
    twin.spines["right"].set_visible(True)
    for side, ax, column, color, label in (
        (-1, axis, "nmse", BLUE, "normalised MSE  ‖z - ẑ‖² / ‖z‖²"),
        (1, twin, lbo, VERMILION, "ε-LBO"),
    ):
        values = [_positive(table, column) for table in groups.values()]
        axes_of.half_violins(ax, values, side, color, max_tokens)
        ax.set_yscale("log")
        ax.set_ylabel(label, color=color)
        ax.tick_params(axis="y", which="both", colors=color)
    axis.set(xlim=(-0.6, len(names) - 0.4))
    shown = [name.removeprefix("layer ") for name in names]
    layers = shown != names
    slanted = max(map(len, shown)) > 10 and len(names) > 1
    axis.set_xticks(range(len(names)), shown, rotation=25 if slanted else 0, ha="right" if slanted else "center")
    if layers:
        axis.set_xlabel("layer")
    handles = axes_of.violin_legend(ranked=len(names) > 1)
    figure.legend(handles=handles, loc="outside upper center", ncols=5 if len(names) > 3 else 3, title=title)
    data_of.save_all(save, figure.savefig, lambda path: _html().half_violins(groups, lbo, title, path))
    return figure


@axes_of.styled
def l0_plot(
    data: Mapping[str, Sequence[AFAResult]] | pd.DataFrame,
    *,
    loss: str = "nmse_mean",
    loss_label: str | None = None,
    d_in: int | None = None,
    title: str | None = None,
    save: Save = None,
) -> Figure:
    """Loss against L0 with a line per architecture: what is lost at how many active features.

    Args:
        data: A table with the columns `architecture`, `l0` and `loss` (and `layer` for panels, `label` for the
            hover text), a row per SAE; or results by architecture.
        loss: Which figure of the results is the loss; a table has its own.
        loss_label: Label of the loss axis; the figure's name if None.
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
    figure, axes = axes_of.figure(rows, columns, (3.1 * columns + 1.6, 3.0 * rows + 0.6), sharey=True)
    architectures = list(dict.fromkeys(table["architecture"]))
    for axis, (layer, part) in zip(axes, by_layer, strict=False):
        for i, name in enumerate(architectures):
            line = data_of.architecture_rows(part, name)
            axis.plot(
                [row["l0"] for row in line],
                [row["loss"] for row in line],
                label=name,
                color=SERIES_COLORS[i % len(SERIES_COLORS)],
                marker=axes_of.MARKERS[(i + i // len(SERIES_COLORS)) % len(axes_of.MARKERS)],
                markersize=5.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linewidth=1.3,
            )
        if d_in is not None:
            axis.axvline(d_in, color="#777777", linewidth=0.8, linestyle=(0, (4, 3)), label=f"L0 = d_in = {d_in}")
        axis.set(xscale="log", yscale="log", title=data_of.layer_title(layer))
        for ticks in (axis.xaxis, axis.yaxis):
            axes_of.plain_ticks(ticks)
    for axis in axes[len(by_layer) :]:
        axis.set_visible(False)
    figure.supxlabel("active features per token (L0)", fontsize=10)
    figure.supylabel(loss_label or (loss if isinstance(data, Mapping) else "loss"), fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4 if columns > 1 else 2, title=title)
    data_of.save_all(save, figure.savefig, lambda path: _html().frontier(by_layer, architectures, d_in, title, path))
    return figure


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


def _html() -> Any:
    from sae_lens_afa import _plot_html

    return _plot_html
