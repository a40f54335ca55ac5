"""The list of metrics: how each is computed, what it is called and where it is shown.

A new metric is one entry of `METRICS` (two, if it has both forms). All else follows from the list: `AFAMetrics` sums
and summarises it, `AFAResult` holds it under its `name`, JSON files and live logs get it, and

* the terminal's table shows it as a row, if it has a `title`;
* `info` and model cards show it under its `heading`, if `shown_in` names `CARD`;
* the tables of sweeps show it under its `heading`, if `shown_in` names `SWEEPS`;
* the per-token table has its values, if it names a `column`.

It is computed from one of two things. `per_token` gives a value for each token, from its norms in the metric's `form`;
NaN where it is not defined; `summary` makes one number of them. `of_stream` gives the number from the sums of all
tokens. A metric with neither is measured elsewhere (cross-entropy) and put into the result by name.

Light: imports neither torch nor pandas.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sae_lens_afa.evals.metric import (
    CARD,
    CENTERED,
    FORMS,
    MEDIAN,
    PAPER,
    QUANTILES,
    SUM,
    SWEEPS,
    Metric,
    Stream,
    TokenColumns,
)
from sae_lens_afa.evals.moments import Array, spearman


def metrics_shown_in(place: str) -> list[Metric]:
    """Return the metrics that are shown in `CARD` or `SWEEPS`: those without a form first, then form by form."""
    return in_reading_order([metric for metric in METRICS if place in metric.shown_in])


def in_reading_order(metrics: list[Metric]) -> list[Metric]:
    """Return metrics without a form first, then form by form, else in the order of the list."""
    order = [None, *FORMS]
    return sorted(metrics, key=lambda metric: order.index(metric.form))


# ---- values (arXiv 2503.24277, section 4)


def _quotient(numerator: Array, denominator: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator / denominator
    return np.where(np.isfinite(ratio), ratio, np.nan)


def _nmse(token: TokenColumns) -> Array:
    return _quotient(token.squared_error, token.dense_norm**2)


def _norm_ratio(token: TokenColumns) -> Array:
    return _quotient(token.feature_norm, token.dense_norm)


def _epsilon_lbo(token: TokenColumns) -> Array:
    import torch  # not with the module: reading and drawing an evaluation computes nothing

    from sae_lens_afa.functional import epsilon_lbo

    dense, feature = torch.from_numpy(token.dense_norm), torch.from_numpy(token.feature_norm)
    return epsilon_lbo(dense, feature, token.d_sae).numpy()


def _flag(token: TokenColumns, flag: NDArray[np.bool_]) -> Array:
    """Return a flag as 0 and 1; NaN where the form's norms are not known."""
    return np.where(np.isnan(token.dense_norm), np.nan, flag)


def _is_undefined(token: TokenColumns) -> Array:
    return _flag(token, np.isnan(_epsilon_lbo(token) + _norm_ratio(token)))


def _spearman(stream: Stream, form: str) -> float | None:
    if stream.sums.pearson(form) is None:
        return None
    dense, feature = (stream.table[f"{form}{part}_norm"].to_numpy(dtype=np.float64) for part in ("dense", "feature"))
    return spearman(dense, feature)


# ---- the list


def _quantiles(median: Metric, **headings: str) -> list[Metric]:
    """Return the quantiles of a metric that is a median, ascending, with it in their midst; sweeps show those named."""
    bare = replace(median, title="", heading="", spread_style="", shown_in=())
    others = {
        summary: replace(
            bare, name=f"{median.column}_{summary}", summary=summary,
            heading=headings.get(summary, ""), shown_in=(SWEEPS,) if summary in headings else (),
        )
        for summary in QUANTILES
    }  # fmt: skip
    return [*(others | {MEDIAN: median}).values()]


def _centered(metric: Metric) -> Metric:
    """Return the centred form of one of the paper's metrics; only the terminal shows it."""
    title = metric.title.replace("||z||", "||z - b||").replace("||z^||", "||z^ - b||")
    column = f"{CENTERED}{metric.column}" if metric.column else ""
    return replace(
        metric, name=f"{CENTERED}{metric.name}", column=column, form=CENTERED, title=title, heading="", shown_in=()
    )


_OF_BOTH_FORMS = [
    Metric(name="n_tokens", title="tokens", style=",.0f", of_stream=lambda stream, _: stream.sums.n_tokens),
    Metric(
        name="n_nonfinite", title="  with NaN or infinity, left out", heading="tokens left out (NaN, infinity)",
        style=",.0f", shown_in=(CARD, SWEEPS), only_if_any=True, of_stream=lambda stream, _: stream.sums.n_nonfinite,
    ),
    Metric(name="d_sae", title="features (d_sae)", style=",.0f", of_stream=lambda stream, _: stream.sums.d_sae),
    Metric(
        name="l0_mean", title="active features per token (L0), mean", heading="L0", style=".1f", spread_style=".0f",
        shown_in=(CARD, SWEEPS), per_token=lambda token: token.l0, column="l0",
    ),
    *_quantiles(
        Metric(name="l0_median", style=".0f", per_token=lambda token: token.l0, column="l0", summary=MEDIAN),
        q05="L0 5 %", q95="L0 95 %",
    ),
    Metric(
        name="explained_variance", title="explained variance", heading="explained variance", style=".4f",
        shown_in=(CARD, SWEEPS), of_stream=lambda stream, _: stream.sums.explained_variance(),
    ),
    Metric(
        name="explained_variance_raw", title="  at the hook point (raw)", heading="explained variance (raw)",
        style=".4f", shown_in=(SWEEPS,), of_stream=lambda stream, _: stream.sums.explained_variance(raw=True),
    ),
    Metric(name="nmse_mean", per_token=_nmse, column="nmse"),
    *_quantiles(
        Metric(name="nmse_median", title="normalised MSE, median", per_token=_nmse, column="nmse", summary=MEDIAN)
    ),
]  # fmt: skip

_OF_A_FORM = [
    Metric(name="n_undefined", style=",.0f", per_token=_is_undefined, summary=SUM),
    Metric(name="dense_norm_median", per_token=lambda token: token.dense_norm, column="dense_norm", summary=MEDIAN),
    Metric(
        name="feature_norm_median", per_token=lambda token: token.feature_norm, column="feature_norm", summary=MEDIAN
    ),
    *_quantiles(
        Metric(
            name="norm_ratio_median", title="  ||f|| / ||z||, median", heading="‖f‖ / ‖z‖ (median)", style=".4f",
            spread_style=".3f", shown_in=(CARD, SWEEPS), per_token=_norm_ratio, column="norm_ratio", summary=MEDIAN,
        )
    ),
    Metric(
        name="activation_ratio_median", title="    = activation ratio ||f|| / ||z^||",
        heading="activation ratio (median)", style=".4f", shown_in=(SWEEPS,),
        per_token=lambda token: _quotient(token.feature_norm, token.recons_norm), column="activation_ratio",
        summary=MEDIAN,
    ),
    Metric(
        name="reconstruction_ratio_median", title="    x reconstruction ratio ||z^|| / ||z||",
        heading="reconstruction ratio (median)", style=".4f", shown_in=(SWEEPS,),
        per_token=lambda token: _quotient(token.recons_norm, token.dense_norm), column="reconstruction_ratio",
        summary=MEDIAN,
    ),
    Metric(
        name="epsilon_lbo_mean", title="  eps-LBO, mean", style=".3e", per_token=_epsilon_lbo, column="epsilon_lbo"
    ),
    *_quantiles(
        Metric(
            name="epsilon_lbo_median", title="  eps-LBO, median", heading="eps-LBO (median)", style=".3e",
            shown_in=(CARD, SWEEPS), per_token=_epsilon_lbo, column="epsilon_lbo", summary=MEDIAN,
        )
    ),
    Metric(
        name="frac_over_activated", title="  over-activated", heading="over-activated", style=".1%",
        shown_in=(CARD, SWEEPS), per_token=lambda token: _flag(token, token.feature_norm > token.dense_norm),
    ),
    Metric(
        name="frac_under_activated", title="  under-activated", style=".1%",
        per_token=lambda token: _flag(token, token.feature_norm < token.dense_norm),
    ),
    Metric(
        name="afa_squared_error_mean", per_token=lambda token: (token.feature_norm - token.dense_norm) ** 2,
        column="afa_squared_error",
    ),
    Metric(
        name="pearson", title="  correlation of ||z|| and ||f||", style=".3f",
        of_stream=lambda stream, form: stream.sums.pearson(form),
    ),
    Metric(name="spearman", style=".3f", of_stream=_spearman),
]  # fmt: skip

# Of the language model with the SAE in place; `outlier_norm` is the norm above which a token is an outlier.
_MEASURED_ELSEWHERE = [
    Metric(
        name="ce_loss_without_sae", title="cross-entropy of the model, nats per token", heading="CE", style=".3f",
        shown_in=(SWEEPS,),
    ),
    Metric(
        name="ce_loss_with_sae", title="  with the SAE in place", heading="CE with SAE", style=".3f",
        shown_in=(SWEEPS,),
    ),
    Metric(
        name="ce_loss_with_ablation", title="  with zeros in place", heading="CE ablated", style=".3f",
        shown_in=(SWEEPS,),
    ),
    Metric(
        name="ce_loss_score", title="  recovered (CE score)", heading="CE score", style=".4f", shown_in=(CARD, SWEEPS)
    ),
    Metric(name="outlier_norm"),
]  # fmt: skip

METRICS: list[Metric] = [
    *_OF_BOTH_FORMS,
    *(replace(metric, form=PAPER) for metric in _OF_A_FORM),
    *(_centered(metric) for metric in _OF_A_FORM),
    *_MEASURED_ELSEWHERE,
]
