"""Frontiers, a line per architecture: loss against L0, and loss against the samples of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.loading.names import near
from sae_lens_afa.plots import axes as axes_of
from sae_lens_afa.plots import data as data_of
from sae_lens_afa.plots.data import Save
from sae_lens_afa.plots.styles import styles_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["l0_plot", "samples_plot"]


@axes_of.styled
def l0_plot(
    data: Mapping[str, Sequence[AFAResult]] | pd.DataFrame,
    *,
    loss: str = "nmse_mean",
    loss_label: str | None = None,
    d_in: int | None = None,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    levels: Mapping[str, float] | None = None,
    title: str | None = None,
    save: Save = None,
) -> Figure:
    """Draw loss against L0 with a line per architecture: what is lost at how many active features.

    An architecture has the same colour and marker in every plot.

    Args:
        data: A table with the columns `architecture`, `l0` and `loss` (and `layer` for panels, `label` for the
            hover text, `n_nonfinite` for tokens that are in neither of the two), a row per SAE; or results by
            architecture.
        loss: The metric of `AFAResult` that is the loss; a table has its own.
        loss_label: Label of the loss axis; the metric's name if None.
        d_in: Draw a line there: a code with more active features than dimensions is not sparse.
        lines: Further values of L0 to mark with their names, by layer: {"6": {"true L0": 12.0}}; "" where the data
            has no layers.
        levels: A loss to draw a level line at, by layer.
        title: Above the figure.
        save: As for `zf_plot`.

    Raises:
        TypeError: `data` is none of these.
        ValueError: no such column or metric, nothing to plot, or `save` ends in something else.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=8, d_sae=16))
        >>> result = afa.evaluate_activations(sae, torch.randn(50, 8))
        >>> figure = afa.plots.l0_plot({"top_afa": [result]}, loss="nmse_median", d_in=8)
        >>> figure.get_supylabel()
        'nmse_median'
    """
    table = _results_table(data, loss)
    label = loss_label or (loss if isinstance(data, Mapping) else "loss")
    return _draw(table, "l0", ("active features per token (L0)", label), title, save, d_in, lines, levels)


@axes_of.styled
def samples_plot(
    data: pd.DataFrame, *, loss_label: str = "loss", title: str | None = None, save: Save = None
) -> Figure:
    """Draw loss against the samples that an SAE was trained on, with a line per architecture.

    Args:
        data: A table with the columns `architecture`, `samples` and `loss` (and `layer` for panels, `label` for the
            hover text), a row per SAE.
        loss_label: Label of the loss axis.
        title: Above the figure.
        save: As for `zf_plot`.

    Raises:
        ValueError: no such column, nothing to plot, or `save` ends in something else.

    Example:
        >>> import pandas as pd
        >>> import sae_lens_afa as afa
        >>> table = pd.DataFrame({"architecture": ["topk"] * 2, "samples": [1e6, 1e7], "loss": [0.3, 0.2]})
        >>> afa.plots.samples_plot(table, loss_label="1 - MCC").get_supylabel()
        '1 - MCC'
    """
    return _draw(data, "samples", ("samples of the training", loss_label), title, save)


def _draw(
    table: pd.DataFrame,
    x: str,
    labels: tuple[str, str],
    title: str | None,
    save: Save,
    d_in: int | None = None,
    lines: Mapping[str, Mapping[str, float]] | None = None,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draw loss against the column `x`, a panel per layer."""
    if missing := [name for name in ("architecture", x, "loss") if name not in table.columns]:
        raise ValueError(f"nothing to plot: the table has no columns {missing}, only {list(table.columns)}.")
    table = table.dropna(subset=[x, "loss"])
    if len(table) == 0:
        raise ValueError(f"nothing to plot: no row has both {data_of.X_NAMES[x]} and a loss.")
    by_layer = list(table.groupby("layer", sort=False)) if "layer" in table.columns else [("", table)]
    panels = [
        data_of.Frontier(
            data_of.layer_title(layer),
            {name: data_of.architecture_rows(part, name, x) for name in dict.fromkeys(table["architecture"])},
            {**({} if d_in is None else {f"d_in = {d_in}": d_in}), **(lines or {}).get(str(layer), {})},
            (levels or {}).get(str(layer)),
            x,
        )
        for layer, part in by_layer
    ]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = axes_of.figure(rows, columns, (3.1 * columns + 1.0, 3.0 * rows + 0.4), sharey=True)
    styles = styles_of(table["architecture"])
    for axis, panel in zip(axes, panels, strict=False):
        axes_of.frontier_axis(axis, panel, styles)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes_of.set_panel_titles(figure, [(axis, p.title) for axis, p in zip(axes, panels, strict=False)], 2.9)
    axes_of.set_labels(figure, *labels)
    axes_of.legend_beside(figure, axes_of.frontier_legend(styles, data_of.nonfinite_by_architecture(table)), title)
    data_of.save_all(
        save, figure.savefig, lambda path: axes_of.pages().frontier(panels, styles, table, labels, title, path)
    )
    return figure


def _results_table(data: object, loss: str) -> pd.DataFrame:
    """Return the table, or one of the results."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        table = data
    elif isinstance(data, Mapping):
        table = pd.DataFrame(
            {
                "architecture": str(name),
                "l0": result.l0_mean,
                "loss": result.to_dict()[loss],
                "n_nonfinite": result.n_nonfinite,
            }
            for name, results in data.items()
            for result in _listed(name, results, loss)
        )
    else:
        raise TypeError(f"expected a mapping of architecture -> results or a DataFrame, got {type(data).__name__}.")
    return table


def _listed(name: object, results: object, loss: str) -> Sequence[AFAResult]:
    """Return the results of an architecture, or say what is there in place of them."""
    if not isinstance(results, Sequence) or not all(isinstance(result, AFAResult) for result in results):
        kind = type(results).__name__
        raise TypeError(f"expected a list of AFAResult for each architecture, got for {name!r}: {kind}.")
    for result in results:
        if loss not in (known := result.to_dict()):
            raise ValueError(f"loss must be a metric of AFAResult, got {loss!r}{near(loss, known)}.")
    return results
