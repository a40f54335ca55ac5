"""The result of an evaluation: metrics of all tokens, and the norms of the tokens that were kept."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from sae_lens_afa.evals.metric_list import FORMS, METRICS, Metric, in_reading_order
from sae_lens_afa.loading.names import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

# Of the flat dictionary: raised when a name or its meaning changes.
FORMAT_VERSION = 1
WITHOUT_OUTLIERS = "without_outliers_"
_REQUIRED = ("n_tokens", "d_sae")


@dataclass(frozen=True, repr=False)
class AFAResult:
    """The metrics of one SAE, each an attribute. None is a metric that is not known or not defined.

    The names are those of `sae_lens_afa.evals.metric_list.METRICS`. Names without a prefix are the paper's form: the
    decoder bias as one more feature, against ||z||. `centered_` is the form that the activation function uses: without
    the bias, against ||z - b_dec||. All norms are in the space in which the SAE decodes, after its input normalisation.

    * `n_tokens`: tokens counted; `n_nonfinite`: left out because they hold a NaN or an infinity; `n_undefined`: without
      features or without a dense norm, left out of the ratio or the eps-LBO.
    * `d_sae`: features of the SAE.
    * `l0_mean`, ...: active features per token.
    * `explained_variance`: 1 - sum ||z - z^||^2 / sum ||z - mean z||^2; `explained_variance_raw`: the same of x and x^
      at the hook point, with the SAE's normalisation undone. The two are equal if it normalises nothing.
    * `nmse_mean`, ...: ||z - z^||^2 / ||z||^2 per token.
    * `dense_norm_median`, `feature_norm_median`: ||z|| and ||[f_i ||d_i||]||.
    * `norm_ratio_median`, ...: ||f|| / ||z||, above 1 for over-activated tokens. It is the product of
      `activation_ratio` (||f|| / ||z^||: do active features overlap?) and `reconstruction_ratio` (||z^|| / ||z||: how
      much was left out?).
    * `epsilon_lbo_median`, ...: lower bound on the dictionary's quasi-orthogonality eps.
    * `frac_over_activated`, `frac_under_activated`: tokens with ||f|| above, below ||z||.
    * `afa_squared_error_mean`: (||f|| - ||z||)^2.
    * `pearson`, `spearman`: correlation of ||z|| and ||f||; None where a norm hardly varies (layer_norm).
    * `ce_loss_without_sae`, `ce_loss_with_sae`, `ce_loss_with_ablation`: the language model's cross-entropy in nats per
      token: untouched, with the reconstruction in place, with zeros there; if it was asked for. `ce_loss_score`:
      (ablation - SAE) / (ablation - untouched): 1 where the SAE costs the model nothing.
    * `outlier_norm`: hook-point norm above which a token is an outlier.

    Attributes:
        values: The metrics by name.
        without_outliers: The same metrics without tokens of outlying norm, if they were asked for.
        tokens: A row per token that was kept, with its norms; not part of the JSON. `sae_lens_afa.plots` draws it.
            `token_std` is what layer_norm divided the token by, NaN where norms are in raw units.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> result = afa.AFAMetrics.from_norms(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), d_sae=5).compute()
        >>> result.frac_over_activated
        0.5
        >>> afa.AFAResult.from_json(result.to_json()) == result
        True
    """

    values: Mapping[str, float | None] = field(hash=False)
    without_outliers: AFAResult | None = None
    tokens: pd.DataFrame | None = field(default=None, compare=False)

    @property
    def n_tokens(self) -> int:
        """Tokens counted."""
        return cast(int, self.values["n_tokens"])

    @property
    def n_nonfinite(self) -> int | None:
        """Tokens left out because they hold a NaN or an infinity; None if that is not known."""
        return cast("int | None", self.values["n_nonfinite"])

    @property
    def d_sae(self) -> int:
        """Features of the SAE."""
        return cast(int, self.values["d_sae"])

    def __getattr__(self, name: str) -> float | None:
        values: Mapping[str, float | None] = self.__dict__.get("values", {})  # empty while it is unpickled
        if name in values:
            return values[name]
        raise AttributeError(f"an AFAResult has no {name!r}{did_you_mean(name, values)}", name=name, obj=self)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.values]

    def __repr__(self) -> str:
        known = [f"{name}={value!r}" for name, value in self.values.items() if value is not None]
        if self.without_outliers is not None:
            known.append(f"without_outliers={self.without_outliers!r}")
        return f"AFAResult({', '.join(known)})"

    def __str__(self) -> str:
        return results_table({"": self})

    @classmethod
    def from_values(cls, values: Mapping[str, float | None], tokens: pd.DataFrame | None = None) -> AFAResult:
        """Return a result of metrics by name; NaN and infinity become None, and so do metrics that are missing.

        Raises:
            ValueError: a name that no metric has.
        """
        known = {metric.name: _finite(values.get(metric.name)) for metric in METRICS}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"values has names that no metric has: {unknown}.")
        return cls(known, tokens=tokens)

    def with_values(self, values: Mapping[str, float | None]) -> AFAResult:
        """Return this result with these metrics set.

        Raises:
            ValueError: a name that no metric has.
        """
        return replace(self, values=AFAResult.from_values({**self.values, **values}).values)

    def with_outliers_left_out(self, other: AFAResult, outlier_norm: float) -> AFAResult:
        """Return this result with that of the tokens up to `outlier_norm` beside it."""
        return replace(self.with_values({"outlier_norm": outlier_norm}), without_outliers=other)

    def map_tokens(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> AFAResult:
        """Return this result with `change` applied to its tokens, if it has any, and to those without outliers."""
        kept = None if self.without_outliers is None else self.without_outliers.map_tokens(change)
        return replace(self, without_outliers=kept, tokens=None if self.tokens is None else change(self.tokens))

    def to_dict(self) -> dict[str, float | None]:
        """Return all metrics in one flat dictionary; those without outliers begin with `without_outliers_`."""
        kept = {} if self.without_outliers is None else self.without_outliers.to_dict()
        kept.pop("outlier_norm", None)
        return {**self.values, **{f"{WITHOUT_OUTLIERS}{name}": value for name, value in kept.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AFAResult:
        """Return the result that `to_dict` wrote, here or in another version.

        Metrics that are missing are None; those that are not known here are left out with a warning that names them.

        Raises:
            ValueError: `n_tokens` or `d_sae` is missing, or a metric is no number.
        """
        names = {metric.name for metric in METRICS}
        kept = {name.removeprefix(WITHOUT_OUTLIERS): v for name, v in data.items() if name.startswith(WITHOUT_OUTLIERS)}
        own = {name: value for name, value in data.items() if not name.startswith(WITHOUT_OUTLIERS)}
        unknown = sorted(own.keys() - names) + [f"{WITHOUT_OUTLIERS}{name}" for name in sorted(kept.keys() - names)]
        if unknown:
            warnings.warn(f"metrics that this sae-lens-afa does not know are left out: {unknown}.", stacklevel=2)
        result = cls.from_values(_checked(own, names, ""))
        if not kept:
            return result
        return replace(result, without_outliers=cls.from_values(_checked(kept, names, WITHOUT_OUTLIERS)))

    def to_json(self) -> str:
        """Return the metrics as JSON, null for None, with the version of the format."""
        return json.dumps({"version": FORMAT_VERSION, **self.to_dict()}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AFAResult:
        """Return the result that `to_json` wrote, read as `from_dict` does; it has no `tokens`.

        Raises:
            ValueError: not such JSON, or that of another version of the format.
        """
        data = json.loads(text)
        check_version(data, "this JSON")
        return cls.from_dict({name: value for name, value in data.items() if name != "version"})

    def to_dataframe(self, name: str = "sae") -> pd.DataFrame:
        """Return one row with all metrics and the index `name`: concatenate those of several SAEs."""
        import pandas as pd

        return pd.DataFrame([self.to_dict()], index=pd.Index([name], name="sae"))


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


def check_version(data: Any, what: str) -> None:
    """Refuse data that was written by another version of the format.

    Raises:
        ValueError: saying which version it is and what to do.
    """
    version = data.get("version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{what} is of version {version!r}, this sae-lens-afa reads version {FORMAT_VERSION}:"
            " run the evaluation again, or use the sae-lens-afa that wrote it."
        )


def _checked(data: Mapping[str, Any], names: set[str], prefix: str) -> dict[str, float | None]:
    """Return the metrics among what was read from a file, which may hold anything."""
    if missing := [f"{prefix}{name}" for name in _REQUIRED if data.get(name) is None]:
        raise ValueError(f"not the metrics of an AFA result: {missing} missing; run the evaluation again.")
    known = {name: value for name, value in data.items() if name in names}
    for name, value in known.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"not the metrics of an AFA result: {prefix}{name} is {value!r}, not a number.")
    return known


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
