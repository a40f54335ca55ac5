"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from sae_lens_afa.evals.metric_list import FORMS, METRICS, Metric, in_reading_order
from sae_lens_afa.evals.result import AFAResult


def results_table(results: Mapping[str, AFAResult]) -> str:
    """Return a table for the terminal: a column per SAE, a row per metric that has a title and is known of one.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> from sae_lens_afa.evals import results_table
        >>> result = afa.AFAMetrics.from_norms(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), d_sae=5).compute()
        >>> results_table({"first": result, "second": result}).splitlines()[1].split()
        ['tokens', '2', '2']
    """
    rows: list[tuple[str, ...]] = [("", *results)] if any(results) else []
    form = None
    for metric in in_reading_order([metric for metric in METRICS if metric.title]):
        cells = [metric.cell(result.values[metric.name]) for result in results.values()]
        if all(cell == "-" for cell in cells):
            continue
        if metric.form not in (None, form):
            form = metric.form
            rows.append((FORMS[form], *("" for _ in cells)))
        rows.append((metric.title, *cells))
        spreads = [_spread(metric, result) for result in results.values()]
        if any(spread != "-" for spread in spreads):
            indent = " " * (len(metric.title) - len(metric.title.lstrip()) + 2)
            rows.append((f"{indent}5-95 %", *spreads))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join([f"{row[0]:<{widths[0]}}"] + [f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)])
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _spread(metric: Metric, result: AFAResult) -> str:
    if not metric.spread_style:
        return "-"
    ends = [result.values[f"{metric.column}_{end}"] for end in ("q05", "q95")]
    return "-" if None in ends else " - ".join(format(end, metric.spread_style) for end in ends)
