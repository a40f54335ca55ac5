"""Tables that the plots draw, and the files that they are saved to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_lens_afa.evals.moments import CORRELATION_THRESHOLD, Array
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

Save = str | Path | Sequence[str | Path] | None
SUFFIXES = (".png", ".svg", ".pdf", ".html")
# What the columns to the right of a frontier are called.
X_NAMES = {"l0": "L0", "samples": "samples"}
BAND_LEVELS = (0.25, 0.5, 1.0)
# Columns of the norms that a panel draws, rescaled or not.
_DRAWN = ("drawn_z", "drawn_f")
# Mark of a panel whose norms are times the token's standard deviation, where others' are not.
RESCALED = "(times std)"
# A panel whose values span more than this factor has logarithmic axes.
_LOG_SPAN = 20.0


class TokenGroup(NamedTuple):
    """The tokens of an SAE or a layer.

    Attributes:
        table: Those whose norms are finite.
        n_nonfinite: Number of those that are not, or that were not judged for a NaN or an infinity.
    """

    table: pd.DataFrame
    n_nonfinite: int


def left_out(n_nonfinite: int) -> str:
    """Return a plot's note on tokens that it does not show; empty if there are none."""
    return f"{n_nonfinite:,} with NaN or ∞ left out" if n_nonfinite else ""


def token_groups(data: object, columns: Sequence[str], form: str) -> dict[str, TokenGroup]:
    """Return per-token tables by SAE or layer, in the order given.

    Args:
        data: An `AFAResult`, a mapping of name -> AFAResult, or a DataFrame, whose column `sae` or else `layer`
            tells the groups apart.
        columns: Columns that the plot needs.
        form: Prefix of the form whose norms are to be finite.

    Raises:
        TypeError: none of these.
        ValueError: no tokens, or a column that is missing or all unknown.
    """
    import pandas as pd

    tables: dict[str, TokenGroup]
    if isinstance(data, pd.DataFrame):
        key = next((name for name in ("sae", "layer") if name in data.columns), None)
        grouped = [] if key is None else data.groupby(key, sort=False)
        tables = (
            {"": TokenGroup(data, 0)} if key is None else {_label(key, name): TokenGroup(t, 0) for name, t in grouped}
        )
    else:
        tables = {name: TokenGroup(_tokens(name, r), r.n_nonfinite or 0) for name, r in _results(data).items()}
    groups = {name: _finite(group, form) for name, group in tables.items() if len(group.table)}
    if not groups:
        raise ValueError("nothing to plot: there are no tokens.")
    for name, (table, _) in groups.items():
        for column in columns:
            if column not in table.columns or np.isnan(column_of(table, column)).all():
                raise ValueError(f"nothing to plot: {name or 'the data'} has no values of {column!r}.")
    return groups


def _finite(group: TokenGroup, form: str) -> TokenGroup:
    """Return the group without the tokens of which a norm in this form is not finite."""
    table, n_nonfinite = group
    norms = [name for part in ("dense", "feature") if (name := f"{form}{part}_norm") in table.columns]
    columns = [column_of(table, name) for name in norms]
    known = [column for column in columns if not np.isnan(column).all()]
    if not known:
        return group
    finite = np.isfinite(known).all(0)
    return TokenGroup(table.loc[finite], n_nonfinite + int((~finite).sum()))


def column_of(table: pd.DataFrame, name: str) -> Array:
    """Return a column as float64."""
    return np.asarray(table[name], dtype=np.float64)


def architecture_rows(table: pd.DataFrame, name: str, x: str) -> list[dict[str, Any]]:
    """Return the rows of one architecture by rising `x`."""
    rows: Any = table[table["architecture"] == name]
    return rows.sort_values(x).to_dict("records")


def layer_title(layer: object) -> str:
    """Return a panel's title: "layer" and its number, or a hook's name as it is."""
    return f"layer {layer}" if str(layer).isdigit() else str(layer)


def _label(key: str, name: object) -> str:
    return str(name) if key == "sae" else f"layer {name}"


def _results(data: object) -> Mapping[str, AFAResult]:
    """Return results by name; a single one has an empty name."""
    if isinstance(data, AFAResult):
        return {"": data}
    if isinstance(data, Mapping) and all(isinstance(result, AFAResult) for result in data.values()):
        return {str(name): result for name, result in data.items()}
    raise TypeError(f"expected an AFAResult, a mapping of name -> AFAResult or a DataFrame, got {type(data).__name__}.")


def _tokens(name: str, result: AFAResult) -> pd.DataFrame:
    """Return the tokens of a result, or say that it has none."""
    if result.tokens is None:
        which = f"the result {name!r}" if name else "the result"
        raise ValueError(f"{which} holds no tokens (it was read from JSON): give the table of its tokens instead.")
    return result.tokens


def sample(table: pd.DataFrame, size: int) -> pd.DataFrame:
    """Return at most `size` rows, the same ones every time."""
    return table if len(table) <= size else table.sample(size, random_state=0).sort_index()


@dataclass(frozen=True)
class Panel:
    """One ZF panel: the points, the range of its two axes, and the number of points that it does not show.

    Attributes:
        z, f: Dense and feature norms.
        low, high: Range of both axes.
        log: Whether they are logarithmic.
        rescaled: Whether norms are times their token's standard deviation.
        n_nonfinite: Tokens that hold a NaN or an infinity.
        table: The tokens that are drawn.
    """

    z: Array
    f: Array
    low: float
    high: float
    log: bool
    rescaled: bool
    n_nonfinite: int
    table: pd.DataFrame

    @property
    def n_outside(self) -> int:
        """Points beyond the axes."""
        inside = (np.minimum(self.z, self.f) >= self.low) & (np.maximum(self.z, self.f) <= self.high)
        return int((~inside).sum())

    @property
    def notes(self) -> list[str]:
        """Notes on points that are not seen."""
        outside = f"{self.n_outside} of {len(self.z)} outside" if self.n_outside else ""
        return [note for note in (outside, left_out(self.n_nonfinite)) if note]


def zf_panel(group: TokenGroup, form: str, max_points: int, *, rescale: bool) -> Panel:
    """Return the panel of dense and feature norms, with one range for both axes that few outliers do not stretch.

    With `rescale`, norms are times their token's standard deviation where that is known and ||z|| hardly varies, as
    under layer_norm, which divides each token by it.
    """
    names = [f"{form}{part}_norm" for part in ("dense", "feature")]
    table = group.table.dropna(subset=names)
    std = column_of(table, "token_std") if "token_std" in table.columns else np.array(np.nan)
    rescaled = rescale and bool(np.isfinite(std).all()) and _hardly_varies(column_of(table, names[0]))
    z, f = (column_of(table, name) * (std if rescaled else 1) for name in names)
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
    shown = sample(table.assign(**{_DRAWN[0]: z, _DRAWN[1]: f}), max_points)
    z, f = (column_of(shown, name) for name in _DRAWN)
    return Panel(z, f, float(low), float(high), log, rescaled, group.n_nonfinite, shown)


def _hardly_varies(norms: Array) -> bool:
    """Return whether norms are all about the same, as layer_norm leaves them."""
    return bool(len(norms) and norms.std() <= CORRELATION_THRESHOLD * abs(norms.mean()))


def zf_labels(panels: Sequence[Panel], form: str) -> tuple[str, str]:
    """Return the labels of the x and the y axes."""
    dense, feature = ("‖z - b‖", "‖f‖") if form else ("‖z‖", "‖f‖")
    bias = "" if form else ", bias as a feature"
    times = ""
    if any(panel.rescaled for panel in panels):
        where = "" if all(panel.rescaled for panel in panels) else f" where marked {RESCALED}"
        times = f", times the token's standard deviation{where}"
    return f"dense norm {dense}{times}", f"feature norm {feature}{bias}{times}"


@dataclass(frozen=True)
class Frontier:
    """One panel of loss against L0 or samples.

    Attributes:
        title: Of the panel.
        rows: Points by architecture.
        lines: Values of L0 to mark, by name.
        level: Loss to mark.
        x: Column of the rows that is drawn to the right.
    """

    title: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    lines: Mapping[str, float]
    level: float | None
    x: str = "l0"


def nonfinite_by_architecture(table: pd.DataFrame) -> dict[str, int]:
    """Count tokens with a NaN or an infinity, of all SAEs of an architecture together."""
    if "n_nonfinite" not in table.columns:
        return {}
    found: dict[str, int] = {}
    for name, n in zip(table["architecture"], column_of(table, "n_nonfinite"), strict=True):
        found[name] = found.get(name, 0) + (0 if np.isnan(n) else int(n))
    return found


def bands() -> list[tuple[float, float]]:
    """Return (c, slope) of the lines ||f|| = ||z|| / sqrt(1 +- c), on which eps (n - 1) is c."""
    return [(c, (1 + sign * c) ** -0.5) for c in BAND_LEVELS for sign in (1, -1) if 1 + sign * c > 0]


def point_density(x: Array, y: Array, bins: int = 40) -> Array:
    """Return the density of points around each point: counts of a smoothed histogram, relative to the largest."""
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
    """Return a grid of values and the kernel density of log10(values) there, scaled to a maximum of 1.

    The grid goes from the 0.5 % to the 99.5 % quantile.
    """
    logs = np.log10(values[values > 0])
    low, high = np.quantile(logs, [0.005, 0.995])
    # Scott's rule, which a few outliers must not widen.
    spread = min(logs.std(), float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / 1.349) or logs.std()
    width = max(spread * len(logs) ** -0.2, 1e-3)
    grid = np.linspace(low, high, points)
    density = np.exp(-0.5 * ((grid[:, None] - logs[None, :]) / width) ** 2).sum(1)
    return 10**grid, density / density.max()


def save_all(save: Save, image: Callable[[Path], Any], html: Callable[[Path], Any]) -> None:
    """Write each file whole, by its ending as a picture or as a page."""
    paths = [] if save is None else [Path(save)] if isinstance(save, str | Path) else [Path(path) for path in save]
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise ValueError(f"save={str(path)!r}: the name must end in one of {', '.join(SUFFIXES)}.")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, html if path.suffix == ".html" else image)
