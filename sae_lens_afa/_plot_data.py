"""What the plots draw, as tables; and the files that they are saved to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_lens_afa.evals.figures import Array
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".png", ".svg", ".pdf", ".html")
# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
SERIES_COLORS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK)
BAND_LEVELS = (0.25, 0.5, 1.0)
# A panel whose values span more than this factor has logarithmic axes.
_LOG_SPAN = 20.0


def token_groups(data: object, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Per-token tables by SAE or layer, in the order given.

    Args:
        data: An `AFAResult`, a mapping of name -> AFAResult, or a DataFrame, whose column `sae` or else `layer`
            tells the groups apart.
        columns: Columns that the plot needs.

    Raises:
        TypeError: none of these.
        ValueError: no tokens, or a column that is missing or all unknown.
    """
    import pandas as pd

    groups: dict[str, pd.DataFrame]
    if isinstance(data, pd.DataFrame):
        key = next((name for name in ("sae", "layer") if name in data.columns), None)
        grouped = [] if key is None else data.groupby(key, sort=False)
        groups = {"": data} if key is None else {_label(key, name): table for name, table in grouped}
    else:
        groups = {name: _tokens(name, result) for name, result in _results(data).items()}
    groups = {name: table for name, table in groups.items() if len(table)}
    if not groups:
        raise ValueError("nothing to plot: there are no tokens.")
    for name, table in groups.items():
        for column in columns:
            if column not in table.columns or np.isnan(column_of(table, column)).all():
                raise ValueError(f"nothing to plot: {name or 'the data'} has no values of {column!r}.")
    return groups


def column_of(table: pd.DataFrame, name: str) -> Array:
    """A column as float64."""
    return np.asarray(table[name], dtype=np.float64)


def architecture_rows(table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """The rows of one architecture by rising L0."""
    rows: Any = table[table["architecture"] == name]
    return rows.sort_values("l0").to_dict("records")


def layer_title(layer: object) -> str:
    """What a panel is called: a layer's number, or a hook's name."""
    return f"layer {layer}" if str(layer).isdigit() else str(layer)


def _label(key: str, name: object) -> str:
    return str(name) if key == "sae" else f"layer {name}"


def _results(data: object) -> Mapping[str, AFAResult]:
    if isinstance(data, AFAResult):
        return {"": data}
    if isinstance(data, Mapping) and all(isinstance(result, AFAResult) for result in data.values()):
        return {str(name): result for name, result in data.items()}
    raise TypeError(f"expected an AFAResult, a mapping of name -> AFAResult or a DataFrame, got {type(data).__name__}.")


def _tokens(name: str, result: AFAResult) -> pd.DataFrame:
    if result.tokens is None:
        raise ValueError(
            f"the result {name!r} holds no tokens (it was read from JSON): give the table of its tokens instead."
        )
    return result.tokens


def sample(table: pd.DataFrame, size: int) -> pd.DataFrame:
    """At most `size` rows, the same ones every time."""
    return table if len(table) <= size else table.sample(size, random_state=0).sort_index()


@dataclass(frozen=True)
class Panel:
    """One ZF panel: the points, the range of its two axes and what lies outside of it."""

    z: Array
    f: Array
    low: float
    high: float
    log: bool
    table: pd.DataFrame

    @property
    def n_outside(self) -> int:
        """Points beyond the axes."""
        inside = (np.minimum(self.z, self.f) >= self.low) & (np.maximum(self.z, self.f) <= self.high)
        return int((~inside).sum())


def zf_panel(table: pd.DataFrame, form: str, max_points: int) -> Panel:
    """Dense and feature norms, with one range for both axes that a few outliers do not stretch."""
    table = table.dropna(subset=[f"{form}dense_norm", f"{form}feature_norm"])
    z, f = (table[f"{form}{part}_norm"].to_numpy(dtype=np.float64) for part in ("dense", "feature"))
    both = np.concatenate([z, f])
    low, high = np.quantile(both, [0.001, 0.999])
    if np.ptp(both) < 1.3 * (high - low):
        low, high = both.min(), both.max()
    log = bool(low > 0 and high / low > _LOG_SPAN)
    if log:
        pad = (high / low) ** 0.06
        low, high = low / pad, high * pad
    else:
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = max(0.0, low - pad), high + pad
    shown = sample(table, max_points)
    z, f = (shown[f"{form}{part}_norm"].to_numpy(dtype=np.float64) for part in ("dense", "feature"))
    return Panel(z, f, float(low), float(high), log, shown)


def bands() -> list[tuple[float, float]]:
    """(c, slope) of the lines ||f|| = ||z|| / sqrt(1 +- c) on which eps (n - 1) is c."""
    return [(c, (1 + sign * c) ** -0.5) for c in BAND_LEVELS for sign in (1, -1) if 1 + sign * c > 0]


def point_density(x: Array, y: Array, bins: int = 40) -> Array:
    """How crowded each point's surroundings are: counts of a smoothed histogram, relative to the largest."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.ones_like(x)
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=bins)
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / 1.2) ** 2)
    for axis in (0, 1):
        counts = np.apply_along_axis(lambda line: np.convolve(line, kernel, mode="same"), axis, counts)
    column = np.clip(np.searchsorted(x_edges, x, side="right") - 1, 0, bins - 1)
    row = np.clip(np.searchsorted(y_edges, y, side="right") - 1, 0, bins - 1)
    return counts[column, row] / counts.max()


def log_density(values: Array, points: int = 160) -> tuple[Array, Array]:
    """Kernel density of log10(values) on a grid between their 0.5 and 99.5 % quantiles, with its maximum at 1."""
    logs = np.log10(values[values > 0])
    low, high = np.quantile(logs, [0.005, 0.995])
    # Scott's rule, which a few outliers must not widen.
    spread = min(logs.std(), float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / 1.349) or logs.std()
    width = max(spread * len(logs) ** -0.2, 1e-3)
    grid = np.linspace(low, high, points)
    density = np.exp(-0.5 * ((grid[:, None] - logs[None, :]) / width) ** 2).sum(1)
    return 10**grid, density / density.max()


def save_all(
    save: str | Path | Sequence[str | Path] | None,
    image: Callable[[Path], Any],
    html: Callable[[Path], Any],
) -> None:
    """Write each file beside its place first, then move it there."""
    paths = [] if save is None else [Path(save)] if isinstance(save, str | Path) else [Path(path) for path in save]
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise ValueError(f"save={str(path)!r}: the name must end in one of {', '.join(SUFFIXES)}.")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, html if path.suffix == ".html" else image)
