"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from sae_lens_afa.evals.result import AFAResult


def results_table(results: Mapping[str, AFAResult]) -> str:
    """A table for the terminal, a column per SAE."""
    rows = [("", *results)] if any(results) else []
    for title, names, style in _TABLE:
        cells = [_cell(result, names, style) for result in results.values()]
        if any(cell != "-" for cell in cells):
            rows.append((title, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join([f"{row[0]:<{widths[0]}}"] + [f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)])
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


_TABLE = (
    ("tokens", ("n_tokens",), ",.0f"),
    ("  with NaN or infinity, left out", ("n_nonfinite",), ",.0f"),
    ("features (d_sae)", ("d_sae",), ",.0f"),
    ("active features per token (L0), mean", ("l0_mean",), ".1f"),
    ("  5-95 %", ("l0_q05", "l0_q95"), ".0f"),
    ("explained variance", ("explained_variance",), ".4f"),
    ("cross-entropy of the model, nats per token", ("ce_loss_without_sae",), ".3f"),
    ("  with the SAE in place", ("ce_loss_with_sae",), ".3f"),
    ("  with zeros in place", ("ce_loss_with_ablation",), ".3f"),
    ("  recovered (CE score)", ("ce_loss_score",), ".4f"),
    ("normalised MSE, median", ("nmse_median",), ".4g"),
    ("bias as a feature, against ||z|| (the paper's form)", (), ""),
    ("  ||f|| / ||z||, median", ("norm_ratio_median",), ".4f"),
    ("    5-95 %", ("norm_ratio_q05", "norm_ratio_q95"), ".3f"),
    ("    = activation ratio ||f|| / ||z^||", ("activation_ratio_median",), ".4f"),
    ("    x reconstruction ratio ||z^|| / ||z||", ("reconstruction_ratio_median",), ".4f"),
    ("  eps-LBO, median", ("epsilon_lbo_median",), ".3e"),
    ("  eps-LBO, mean", ("epsilon_lbo_mean",), ".3e"),
    ("  over-activated", ("frac_over_activated",), ".1%"),
    ("  under-activated", ("frac_under_activated",), ".1%"),
    ("  correlation of ||z|| and ||f||", ("pearson",), ".3f"),
    ("centred, against ||z - b_dec||", (), "centered_"),
    ("  ||f|| / ||z - b||, median", ("centered_norm_ratio_median",), ".4f"),
    ("    = activation ratio", ("centered_activation_ratio_median",), ".4f"),
    ("    x reconstruction ratio", ("centered_reconstruction_ratio_median",), ".4f"),
    ("  eps-LBO, median", ("centered_epsilon_lbo_median",), ".3e"),
    ("  over-activated", ("centered_frac_over_activated",), ".1%"),
)


def _cell(result: AFAResult, names: tuple[str, ...], style: str) -> str:
    if not names:  # a heading: shown where its form is known
        return "" if getattr(result, f"{style}dense_norm_median") is not None else "-"
    values = [getattr(result, name) for name in names]
    if None in values or (names == ("n_nonfinite",) and values == [0]):
        return "-"
    return " - ".join(format(value, style) for value in values)
