"""Plots as self-contained pages: zoom, and each token's context on hovering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lens_afa.plots.data import (
    X_NAMES,
    Frontier,
    Panel,
    TokenGroup,
    bands,
    column_of,
    left_out,
    nonfinite_by_architecture,
    point_density,
    sample,
)
from sae_lens_afa.plots.styles import BLACK, BLUE, VERMILION, Style

if TYPE_CHECKING:
    import pandas as pd

_DASHES = {0.25: "dash", 0.5: "dashdot", 1.0: "dot"}
_MAX_VIOLIN_TOKENS = 2000
_GREY = "#777"
# Pixels of a line of a title, and characters of the page's for each 100 pixels.
_TITLE_LINE, _PANEL_TITLE_LINE, _TITLE_CHARACTERS = 22, 20, 11
# Least width of a page that is as wide as its window.
_MIN_WIDTH = 800


def zf(
    panels: Sequence[Panel],
    titles: Sequence[str],
    labels: tuple[str, str],
    form: str,
    title: str | None,
    path: Path,
) -> None:
    """Write the ZF plot."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    shown = ["<br>".join([_broken(name, 30), *panel.notes]) for name, panel in zip(titles, panels, strict=True)]
    figure: Any = make_subplots(
        rows, columns, subplot_titles=shown, horizontal_spacing=0.05, vertical_spacing=0.25 / (rows + 1),
        x_title=_broken(labels[0], 70), y_title=_broken(labels[1], 60),
    )  # fmt: skip
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        place = {"row": row + 1, "col": column + 1}
        ends = np.array([panel.low, panel.high])
        figure.add_trace(_line(ends, ends, "‖f‖ = ‖z‖", "solid", first=i == 0), **place)
        for level, slope in bands():
            first = i == 0 and slope < 1
            figure.add_trace(_line(ends, ends * slope, f"ε(n-1) = {level:g}", _DASHES[level], first=first), **place)
        figure.add_trace(_points(panel, form), **place)
        kind = "log" if panel.log else "linear"
        limits = np.log10(ends) if panel.log else ends
        axis = {"type": kind, "range": limits.tolist(), "showline": True, "linecolor": "#555"}
        x_name = figure.get_subplot(**place).xaxis.plotly_name.replace("axis", "")
        figure.update_xaxes(**axis, **place)
        figure.update_yaxes(**axis, scaleanchor=x_name, constrain="domain", **place)
    _hide_empty(figure, len(panels), rows, columns)
    lines = max(name.count("<br>") + 1 if name else 0 for name in shown)
    width = None if columns > 1 else 640
    _write(figure, title, path, height=max(460, 330 * rows), width=width, legend_above=lines)


def _line(x: Any, y: Any, name: str, dash: str, *, first: bool) -> go.Scatter:
    """Return a line without hover text; only the first of its name is in the legend."""
    return go.Scatter(
        x=x, y=y, mode="lines", name=name, legendgroup=name, showlegend=first, hoverinfo="skip",
        line={"color": BLACK, "width": 1, "dash": dash},
    )  # fmt: skip


def _points(panel: Panel, form: str) -> go.Scattergl:
    """Return the tokens as points, coloured by their density."""
    x, y = (np.log(panel.z), np.log(panel.f)) if panel.log else (panel.z, panel.f)
    return go.Scattergl(
        x=panel.z, y=panel.f, mode="markers", showlegend=False, text=_hover(panel.table, form), hoverinfo="text",
        marker={
            "size": 4, "opacity": 0.75, "color": point_density(x, y), "colorscale": "Viridis", "cmin": 0, "cmax": 1.1
        },
    )  # fmt: skip


def _hover(table: pd.DataFrame, form: str) -> list[str]:
    """Return for each token its context, with the token in bold, and its metrics."""
    names = [f"{form}dense_norm", f"{form}feature_norm", f"{form}norm_ratio", f"{form}epsilon_lbo", "nmse", "l0"]
    names = [name for name in names if name in table.columns and not np.isnan(column_of(table, name)).all()]
    lines: list[str] = []
    for row in table.to_dict("records"):
        context, token = str(row.get("context", "")), str(row.get("token", ""))
        before = context.removesuffix(token) if token else context
        text = f"{escape(before)}<b>{escape(token)}</b><br>".replace("\n", "⏎ ") if context or token else ""
        lines.append(text + "<br>".join(f"{name} {row[name]:.4g}" for name in names))
    return lines


def half_violins(
    groups: Mapping[str, TokenGroup], lbo: str, labels: tuple[str, str], title: str | None, path: Path
) -> None:
    """Write the half-violins of NMSE and eps-LBO."""
    figure: Any = make_subplots(specs=[[{"secondary_y": True}]])
    for column, label, color, side in (("nmse", "NMSE", BLUE, "negative"), (lbo, "ε-LBO", VERMILION, "positive")):
        for i, (name, group) in enumerate(groups.items()):
            values = column_of(sample(group.table, _MAX_VIOLIN_TOKENS), column)
            values = values[np.isfinite(values) & (values > 0)]
            place = "<br>".join(filter(None, (_broken(name, 30), left_out(group.n_nonfinite))))
            # plotly takes densities of what it is given: of logarithms, as the picture's axis is logarithmic.
            figure.add_trace(
                go.Violin(
                    x=[place] * len(values), y=np.log10(values), side=side, name=label,
                    legendgroup=label, scalegroup=label + name, showlegend=i == 0, line_color=color, points=False,
                    meanline_visible=False, box_visible=True, box_width=0.08, spanmode="hard", width=0.9,
                ),
                secondary_y=side == "positive",
            )  # fmt: skip
    figure.update_yaxes(title=f"{labels[0]}, log10", color=BLUE, secondary_y=False)
    figure.update_yaxes(title=f"{labels[1]}, log10", color=VERMILION, showgrid=False, secondary_y=True)
    figure.update_layout(violinmode="overlay")
    _write(figure, title, path, height=460, width=None, legend_above=0)


def frontier(
    panels: Sequence[Frontier],
    styles: Mapping[str, Style],
    table: pd.DataFrame,
    labels: tuple[str, str],
    title: str | None,
    path: Path,
) -> None:
    """Write a frontier."""
    n_nonfinite = nonfinite_by_architecture(table)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure: Any = make_subplots(
        rows, columns, subplot_titles=[_broken(panel.title, 40) for panel in panels], shared_yaxes=True,
        x_title=labels[0], y_title=_broken(labels[1], 60), vertical_spacing=0.25 / (rows + 1),
    )  # fmt: skip
    for i, panel in enumerate(panels):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        for name, style in styles.items():
            line, x = panel.rows[name], panel.x
            text = [
                f"{escape(str(row.get('label', '')))}<br>{X_NAMES[x]} {row[x]:.4g}<br>loss {row['loss']:.4g}"
                for row in line
            ]
            figure.add_trace(
                go.Scatter(
                    x=[row[x] for row in line], y=[row["loss"] for row in line],
                    name="<br>".join(filter(None, (escape(name), left_out(n_nonfinite.get(name, 0))))),
                    legendgroup=name, showlegend=i == 0, text=text, hoverinfo="text+name", mode="lines+markers",
                    line={"color": style.color, "dash": "dash" if style.dashed else "solid"},
                    marker={"symbol": style.symbol, "size": 8},
                ),
                **place,
            )  # fmt: skip
        for name, value in panel.lines.items():
            figure.add_vline(value, line={"color": _GREY, "dash": "dot", "width": 1}, **place)
            # On a logarithmic axis plotly places lines by the value and texts by its logarithm.
            figure.add_annotation(
                x=np.log10(value), y=1, yref="y domain", text=escape(name), textangle=-90, showarrow=False,
                xanchor="right", yanchor="top", font={"color": _GREY, "size": 11}, **place,
            )  # fmt: skip
        if panel.level is not None:
            figure.add_hline(panel.level, line={"color": _GREY, "dash": "dot", "width": 1}, **place)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    _hide_empty(figure, len(panels), rows, columns)
    _write(figure, title, path, height=420 * rows, width=None)


def _broken(text: str, characters: int) -> str:
    """Return plain text as plotly's HTML, in lines of at most so many characters."""
    lines = [line for part in text.split("\n") for line in wrap(part, characters) or [""]]
    return "<br>".join(escape(line, quote=False) for line in lines)


def _hide_empty(figure: Any, panels: int, rows: int, columns: int) -> None:
    """Hide the places of a grid that no panel fills."""
    for i in range(panels, rows * columns):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        figure.update_xaxes(visible=False, **place)
        figure.update_yaxes(visible=False, **place)


def _write(
    figure: Any, title: str | None, path: Path, *, height: int, width: int | None, legend_above: int | None = None
) -> None:
    """Write a page; titles and legend have room of their own above its panels.

    Args:
        figure: The figure.
        title: Above all.
        path: The file.
        height: Pixels of all panels together.
        width: Pixels; the window's if None.
        legend_above: Lines of the panels' titles, above which the legend is; right of the panels if None.
    """
    shown = _broken(title, (width or _MIN_WIDTH) * _TITLE_CHARACTERS // 100) if title else ""
    top = 40 + (_TITLE_LINE * (shown.count("<br>") + 1) if shown else 0)
    legend: dict[str, Any] = {}
    if legend_above is not None:
        panel_titles = 12 + _PANEL_TITLE_LINE * legend_above
        legend = {"orientation": "h", "yanchor": "bottom", "y": 1 + panel_titles / height, "x": 0}
        top += panel_titles + 40  # the legend may need two lines
    bottom = 70
    figure.update_layout(
        title={"text": shown, "y": 1, "yanchor": "top", "pad": {"t": 14}}, template="plotly_white",
        height=top + height + bottom, width=width, font={"size": 13}, legend=legend,
        margin={"t": top, "l": 90, "r": 30, "b": bottom},
    )  # fmt: skip
    figure.write_html(path, include_plotlyjs=True, full_html=True)
