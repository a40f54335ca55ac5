"""The plots as self-contained pages: zoom, and each token's context on hovering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lens_afa._plot_data import (
    BLACK,
    BLUE,
    SERIES_COLORS,
    VERMILION,
    Panel,
    architecture_rows,
    bands,
    column_of,
    layer_title,
    point_density,
    sample,
)

if TYPE_CHECKING:
    import pandas as pd

_DASHES = {0.25: "dash", 0.5: "dashdot", 1.0: "dot"}
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
_MAX_VIOLIN_TOKENS = 2000


def zf(panels: Mapping[str, Panel], form: str, title: str | None, path: Path) -> None:
    """Write the ZF plot."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure: Any = make_subplots(
        rows, columns, subplot_titles=list(panels), horizontal_spacing=0.05, vertical_spacing=0.25 / (rows + 1)
    )
    for i, panel in enumerate(panels.values()):
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
        figure.update_xaxes(**axis, title="‖z‖" if row == rows - 1 else None, **place)
        figure.update_yaxes(
            **axis, title="‖f‖" if column == 0 else None, scaleanchor=x_name, constrain="domain", **place
        )
    _write(figure, title, path, height=max(560, 330 * rows + 80), width=None if columns > 1 else 640)


def _line(x: Any, y: Any, name: str, dash: str, *, first: bool) -> go.Scatter:
    return go.Scatter(
        x=x, y=y, mode="lines", name=name, legendgroup=name, showlegend=first, hoverinfo="skip",
        line={"color": BLACK, "width": 1, "dash": dash},
    )  # fmt: skip


def _points(panel: Panel, form: str) -> go.Scattergl:
    x, y = (np.log(panel.z), np.log(panel.f)) if panel.log else (panel.z, panel.f)
    return go.Scattergl(
        x=panel.z, y=panel.f, mode="markers", showlegend=False, text=_hover(panel.table, form), hoverinfo="text",
        marker={
            "size": 4, "opacity": 0.75, "color": point_density(x, y), "colorscale": "Viridis", "cmin": 0, "cmax": 1.1
        },
    )  # fmt: skip


def _hover(table: pd.DataFrame, form: str) -> list[str]:
    """The context with the token in bold, then its figures."""
    names = [f"{form}dense_norm", f"{form}feature_norm", f"{form}norm_ratio", f"{form}epsilon_lbo", "nmse", "l0"]
    names = [name for name in names if name in table.columns and not np.isnan(column_of(table, name)).all()]
    lines: list[str] = []
    for row in table.to_dict("records"):
        context, token = str(row.get("context", "")), str(row.get("token", ""))
        before = context.removesuffix(token) if token else context
        text = f"{escape(before)}<b>{escape(token)}</b><br>".replace("\n", "⏎ ") if context or token else ""
        lines.append(text + "<br>".join(f"{name} {row[name]:.4g}" for name in names))
    return lines


def half_violins(groups: Mapping[str, pd.DataFrame], lbo: str, title: str | None, path: Path) -> None:
    """Write the half-violins of NMSE and eps-LBO."""
    figure: Any = make_subplots(specs=[[{"secondary_y": True}]])
    for column, label, color, side in (("nmse", "NMSE", BLUE, "negative"), (lbo, "ε-LBO", VERMILION, "positive")):
        for i, (name, table) in enumerate(groups.items()):
            values = column_of(sample(table, _MAX_VIOLIN_TOKENS), column)
            values = values[values > 0]
            # plotly takes densities of what it is given: of logarithms, as the picture's axis is logarithmic.
            figure.add_trace(
                go.Violin(
                    x=[name] * len(values), y=np.log10(values), side=side, name=label,
                    legendgroup=label, scalegroup=label + name, showlegend=i == 0, line_color=color, points=False,
                    meanline_visible=False, box_visible=True, box_width=0.08, spanmode="hard", width=0.9,
                ),
                secondary_y=side == "positive",
            )  # fmt: skip
    figure.update_yaxes(title="log10 normalised MSE", color=BLUE, secondary_y=False)
    figure.update_yaxes(title="log10 ε-LBO", color=VERMILION, showgrid=False, secondary_y=True)
    figure.update_layout(violinmode="overlay")
    _write(figure, title, path, height=560, width=None)


def frontier(
    by_layer: Sequence[tuple[Any, pd.DataFrame]],
    architectures: Sequence[str],
    d_in: int | None,
    title: str | None,
    path: Path,
) -> None:
    """Write loss against L0."""
    titles = [layer_title(layer) for layer, _ in by_layer]
    figure: Any = make_subplots(1, len(by_layer), subplot_titles=titles, shared_yaxes=True)
    for i, (_, part) in enumerate(by_layer):
        for j, name in enumerate(architectures):
            line = architecture_rows(part, name)
            text = [
                f"{escape(str(row.get('label', '')))}<br>L0 {row['l0']:.4g}<br>loss {row['loss']:.4g}" for row in line
            ]
            figure.add_trace(
                go.Scatter(
                    x=[row["l0"] for row in line], y=[row["loss"] for row in line],
                    name=name, legendgroup=name, showlegend=i == 0, text=text,
                    hoverinfo="text+name", mode="lines+markers", line={"color": SERIES_COLORS[j % len(SERIES_COLORS)]},
                    marker={"symbol": _SYMBOLS[(j + j // len(SERIES_COLORS)) % len(_SYMBOLS)], "size": 8},
                ),
                row=1, col=i + 1,
            )  # fmt: skip
        if d_in is not None:
            figure.add_vline(d_in, line={"color": "#777", "dash": "dash", "width": 1}, row=1, col=i + 1)
    figure.update_xaxes(type="log", title="active features per token (L0)")
    figure.update_yaxes(type="log")
    figure.update_yaxes(title="loss", col=1)
    _write(figure, title, path, height=520, width=None)


def _write(figure: Any, title: str | None, path: Path, *, height: int, width: int | None) -> None:
    figure.update_layout(
        title=title, template="plotly_white", height=height, width=width, font={"size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.06, "x": 0},
        margin={"t": 110 if title else 80, "l": 60, "r": 30, "b": 50},
    )  # fmt: skip
    figure.write_html(path, include_plotlyjs=True, full_html=True)
