"""ZF plot and eps-LBO plot: matplotlib figures, saved as pictures or, as `save="x.html"`, as pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sae_lens_afa.evals.moments import Array
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.plots import axes as axes_of
from sae_lens_afa.plots import data as data_of
from sae_lens_afa.plots.data import Save
from sae_lens_afa.plots.styles import BLUE, VERMILION

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["eps_lbo_plot", "zf_plot"]

_NMSE, _LBO = "normalised MSE  ‖z - ẑ‖² / ‖z‖²", "ε-LBO"


@axes_of.styled
def zf_plot(
    data: AFAResult | Mapping[str, AFAResult] | pd.DataFrame,
    *,
    centered: bool = False,
    rescale_by_token_std: bool = True,
    max_points: int = 3000,
    title: str | None = None,
    save: Save = None,
) -> Figure:
    """Draw the ZF plot: feature norm against dense norm of each token, a panel per SAE (arXiv 2503.24277, figure 2).

    Points above the line y = x are over-activated tokens, below it under-activated ones; on the broken lines
    eps (n - 1) is 0.25, 0.5 and 1. Colour is how many tokens lie there. Axes are logarithmic where norms span a
    factor of 20. Tokens with a NaN or an infinity are left out and counted.

    Args:
        data: A result, results by name, or a table of tokens with the columns `dense_norm` and `feature_norm`
            (and `sae` or `layer` for the panels; `context` for the hover text).
        centered: The centred form instead of the paper's.
        rescale_by_token_std: Where every ||z|| is the same, as under layer_norm, draw norms times their token's
            standard deviation (the column `token_std`, if it is there), and say so on the axes. Ratios stay.
        max_points: Tokens drawn in a panel, at random if there are more.
        title: Above the figure.
        save: File or files to write: .png, .svg, .pdf, or .html with each token's context on hovering.

    Raises:
        TypeError: `data` is none of these.
        ValueError: there is nothing to plot, a result has no tokens, or `save` ends in something else.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=8, d_sae=16))
        >>> result = afa.evaluate_activations(sae, torch.randn(50, 8))
        >>> figure = afa.plots.zf_plot({"top_afa": result}, save="zf.png")
        >>> figure.axes[0].get_title()
        'top_afa'
    """
    form = "centered_" if centered else ""
    groups = data_of.token_groups(data, [f"{form}dense_norm", f"{form}feature_norm"], form)
    panels = {
        name: data_of.zf_panel(group, form, max_points, rescale=rescale_by_token_std) for name, group in groups.items()
    }
    marked = len({panel.rescaled for panel in panels.values()}) > 1
    titles = [f"{name} {data_of.RESCALED}" if marked and p.rescaled else name for name, p in panels.items()]
    labels = data_of.zf_labels(list(panels.values()), form)
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    size = (3.9, 4.5) if len(panels) == 1 else (2.35 * columns + 0.5, 2.4 * rows + 1.0)
    figure, axes = axes_of.figure(rows, columns, size)
    for axis, panel in zip(axes, panels.values(), strict=False):
        axes_of.zf_axis(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes_of.set_panel_titles(figure, list(zip(axes, titles, strict=False)), (size[0] - 0.5) / columns - 0.15)
    axes_of.set_labels(figure, *labels)
    axes_of.legend_above(figure, axes_of.zf_legend(), 4 if columns > 2 else 2, title)
    data_of.save_all(
        save, figure.savefig, lambda path: axes_of.pages().zf(list(panels.values()), titles, labels, form, title, path)
    )
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
    """Draw half-violins of the normalised MSE (left halves) and the eps-LBO (right halves) of each SAE or layer.

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
        ValueError: there is nothing to plot, a result has no tokens, or `save` ends in something else.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=8, d_sae=16))
        >>> result = afa.evaluate_activations(sae, torch.randn(50, 8))
        >>> figure = afa.plots.eps_lbo_plot(result, save=["lbo.png", "lbo.svg"])
        >>> len(figure.axes)
        2
    """
    lbo = "centered_epsilon_lbo" if centered else "epsilon_lbo"
    groups = data_of.token_groups(data, ["nmse", lbo], "centered_" if centered else "")
    names = list(groups)
    figure, (axis,) = axes_of.figure(1, 1, (max(4.5, 0.72 * len(names) + 2.0), 4.2))
    twin = axis.twinx()
    twin.spines["right"].set_visible(True)
    for side, ax, column, color, label in ((-1, axis, "nmse", BLUE, _NMSE), (1, twin, lbo, VERMILION, _LBO)):
        values = [_positive(group.table, column) for group in groups.values()]
        axes_of.half_violins(ax, values, side, color, max_tokens)
        ax.set_yscale("log")
        ax.set_ylabel(label, color=color)
        ax.tick_params(axis="y", which="both", colors=color)
    axis.set(xlim=(-0.6, len(names) - 0.4))
    shown = [name.removeprefix("layer ") for name in names]
    layers = shown != names
    notes = [data_of.left_out(group.n_nonfinite) for group in groups.values()]
    shown = ["\n".join(filter(None, pair)) for pair in zip(shown, notes, strict=True)]
    slanted = max(map(len, shown)) > 10 and len(names) > 1
    ticks = [axes_of.wrapped(figure, text, 1.8, 9) for text in shown]
    axis.set_xticks(
        range(len(names)), ticks, rotation=25 if slanted else 0, ha="right" if slanted else "center", parse_math=False
    )
    if layers:
        axis.set_xlabel("layer")
    handles = axes_of.violin_legend(ranked=len(names) > 1)
    axes_of.legend_above(figure, handles, 5 if len(names) > 3 else 3, title)
    data_of.save_all(
        save, figure.savefig, lambda path: axes_of.pages().half_violins(groups, lbo, (_NMSE, _LBO), title, path)
    )
    return figure


def _positive(table: pd.DataFrame, column: str) -> Array:
    """Return the defined values, for a logarithmic axis: one that is 0 counts as the smallest that is not."""
    values = data_of.column_of(table, column)
    values = values[np.isfinite(values)]
    if not (values > 0).any():
        raise ValueError(f"nothing to plot: no value of {column!r} is above 0.")
    return np.maximum(values, values[values > 0].min())
