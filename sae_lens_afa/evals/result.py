"""What an evaluation says of an SAE: figures of all tokens, and the norms of the tokens that were kept."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Of the flat dictionary: raised when a name or its meaning changes.
FORMAT_VERSION = 1
WITHOUT_OUTLIERS = "without_outliers_"
_REQUIRED = ("n_tokens", "d_sae")


@dataclass(frozen=True, kw_only=True)
class _Stream:
    n_tokens: int
    n_nonfinite: int | None = None
    d_sae: int
    l0_mean: float | None = None
    l0_q05: float | None = None
    l0_q25: float | None = None
    l0_median: float | None = None
    l0_q75: float | None = None
    l0_q95: float | None = None
    explained_variance: float | None = None
    nmse_mean: float | None = None
    nmse_q05: float | None = None
    nmse_q25: float | None = None
    nmse_median: float | None = None
    nmse_q75: float | None = None
    nmse_q95: float | None = None


@dataclass(frozen=True, kw_only=True)
class _PaperForm(_Stream):
    n_undefined: int | None = None
    dense_norm_median: float | None = None
    feature_norm_median: float | None = None
    norm_ratio_q05: float | None = None
    norm_ratio_q25: float | None = None
    norm_ratio_median: float | None = None
    norm_ratio_q75: float | None = None
    norm_ratio_q95: float | None = None
    activation_ratio_median: float | None = None
    reconstruction_ratio_median: float | None = None
    epsilon_lbo_mean: float | None = None
    epsilon_lbo_q05: float | None = None
    epsilon_lbo_q25: float | None = None
    epsilon_lbo_median: float | None = None
    epsilon_lbo_q75: float | None = None
    epsilon_lbo_q95: float | None = None
    frac_over_activated: float | None = None
    frac_under_activated: float | None = None
    afa_squared_error_mean: float | None = None
    pearson: float | None = None
    spearman: float | None = None


@dataclass(frozen=True, kw_only=True)
class _CenteredForm(_PaperForm):
    centered_n_undefined: int | None = None
    centered_dense_norm_median: float | None = None
    centered_feature_norm_median: float | None = None
    centered_norm_ratio_q05: float | None = None
    centered_norm_ratio_q25: float | None = None
    centered_norm_ratio_median: float | None = None
    centered_norm_ratio_q75: float | None = None
    centered_norm_ratio_q95: float | None = None
    centered_activation_ratio_median: float | None = None
    centered_reconstruction_ratio_median: float | None = None
    centered_epsilon_lbo_mean: float | None = None
    centered_epsilon_lbo_q05: float | None = None
    centered_epsilon_lbo_q25: float | None = None
    centered_epsilon_lbo_median: float | None = None
    centered_epsilon_lbo_q75: float | None = None
    centered_epsilon_lbo_q95: float | None = None
    centered_frac_over_activated: float | None = None
    centered_frac_under_activated: float | None = None
    centered_afa_squared_error_mean: float | None = None
    centered_pearson: float | None = None
    centered_spearman: float | None = None


@dataclass(frozen=True, kw_only=True)
class AFAResult(_CenteredForm):
    """Figures of one SAE. None is a figure that is not known or not defined.

    Names without a prefix are the paper's form: the decoder bias as one more feature, against ||z||. `centered_`
    is the form that the activation function uses: without the bias, against ||z - b_dec||. All norms are in the
    space in which the SAE decodes, after its input normalisation.

    Attributes:
        n_tokens: Tokens counted.
        n_nonfinite: Tokens left out because they hold a NaN or an infinity.
        n_undefined: Tokens without features or without a dense norm, left out of the ratio or the eps-LBO.
        d_sae: Features of the SAE.
        l0_mean, ...: Active features per token.
        explained_variance: 1 - sum ||z - z^||^2 / sum ||z - mean z||^2.
        nmse_mean, ...: ||z - z^||^2 / ||z||^2 per token.
        dense_norm_median, feature_norm_median: ||z|| and ||[f_i ||d_i||]||.
        norm_ratio_median, ...: ||f|| / ||z||, above 1 for over-activated tokens. It is the product of
            `activation_ratio` (||f|| / ||z^||: do active features overlap?) and `reconstruction_ratio`
            (||z^|| / ||z||: how much was left out?).
        epsilon_lbo_median, ...: lower bound on the dictionary's quasi-orthogonality eps.
        frac_over_activated, frac_under_activated: Tokens with ||f|| above, below ||z||.
        afa_squared_error_mean: (||f|| - ||z||)^2.
        pearson, spearman: Correlation of ||z|| and ||f||; None where a norm hardly varies (layer_norm).
        without_outliers: The same figures without tokens of outlying norm, if they were asked for.
        ce_loss_without_sae, ce_loss_with_sae, ce_loss_with_ablation: The language model's cross-entropy in nats per
            token: untouched, with the reconstruction in place, with zeros there; if it was asked for.
        ce_loss_score: (ablation - SAE) / (ablation - untouched): 1 where the SAE costs the model nothing.
        outlier_norm: Hook-point norm above which a token is an outlier.
        tokens: A row per token that was kept, with its norms; not part of the JSON. `sae_lens_afa.plots` draws it.
            `token_std` is what layer_norm divided the token by, NaN where norms are in raw units.
    """

    ce_loss_without_sae: float | None = None
    ce_loss_with_sae: float | None = None
    ce_loss_with_ablation: float | None = None
    ce_loss_score: float | None = None
    outlier_norm: float | None = None
    without_outliers: AFAResult | None = None
    tokens: pd.DataFrame | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_figures(cls, figures: Mapping[str, Any], tokens: pd.DataFrame | None = None) -> AFAResult:
        """A result of the figures that have a field here; NaN becomes None."""
        names = {f.name for f in fields(cls)}
        values = {name: _none_for_nan(value) for name, value in figures.items() if name in names}
        return cls(**values, tokens=tokens)

    def with_outliers_left_out(self, other: AFAResult, outlier_norm: float) -> AFAResult:
        """This result with that of the tokens up to `outlier_norm` beside it."""
        return replace(self, without_outliers=other, outlier_norm=outlier_norm)

    def map_tokens(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> AFAResult:
        """This result with `change` applied to its tokens, if it has any, and to those without outliers."""
        kept = None if self.without_outliers is None else self.without_outliers.map_tokens(change)
        return replace(self, without_outliers=kept, tokens=None if self.tokens is None else change(self.tokens))

    def to_dict(self) -> dict[str, float | None]:
        """All figures in one flat dictionary; those without outliers begin with `without_outliers_`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("without_outliers", "tokens")}
        if self.without_outliers is None:
            return own
        kept = self.without_outliers.to_dict()
        kept.pop("outlier_norm")
        return own | {f"{WITHOUT_OUTLIERS}{name}": value for name, value in kept.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AFAResult:
        """The result that `to_dict` wrote, here or in another version.

        Figures that are missing are None; those that are not known here are left out with a warning that names them.

        Raises:
            ValueError: `n_tokens` or `d_sae` is missing, or a figure is no number.
        """
        names = {f.name for f in fields(cls)} - {"without_outliers", "tokens"}
        kept = {name.removeprefix(WITHOUT_OUTLIERS): v for name, v in data.items() if name.startswith(WITHOUT_OUTLIERS)}
        own = {name: value for name, value in data.items() if not name.startswith(WITHOUT_OUTLIERS)}
        unknown = sorted(own.keys() - names) + [f"{WITHOUT_OUTLIERS}{name}" for name in sorted(kept.keys() - names)]
        if unknown:
            warnings.warn(f"figures that this sae-lens-afa does not know are left out: {unknown}.", stacklevel=2)
        result = cls._of_known(own, names, "")
        if not kept:
            return result
        return replace(result, without_outliers=cls._of_known(kept, names, WITHOUT_OUTLIERS))

    @classmethod
    def _of_known(cls, data: Mapping[str, Any], names: Set[str], prefix: str) -> AFAResult:
        if missing := [f"{prefix}{name}" for name in _REQUIRED if data.get(name) is None]:
            raise ValueError(f"not the figures of an AFA result: {missing} missing; run the evaluation again.")
        known = {name: value for name, value in data.items() if name in names}
        for name, value in known.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"not the figures of an AFA result: {prefix}{name} is {value!r}, not a number.")
        return cls(**known)

    def to_json(self) -> str:
        """The figures as JSON, null for None, with the version of the format."""
        return json.dumps({"version": FORMAT_VERSION, **self.to_dict()}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AFAResult:
        """The result that `to_json` wrote, read as `from_dict` does; it has no `tokens`.

        Raises:
            ValueError: not such JSON, or that of another version of the format.
        """
        data = json.loads(text)
        check_version(data, "this JSON")
        return cls.from_dict({name: value for name, value in data.items() if name != "version"})

    def to_dataframe(self, name: str = "sae") -> pd.DataFrame:
        """One row with all figures and the index `name`: concatenate those of several SAEs. See also `tokens`."""
        import pandas as pd

        return pd.DataFrame([self.to_dict()], index=pd.Index([name], name="sae"))

    def __str__(self) -> str:
        from sae_lens_afa.evals.table import results_table

        return results_table({"": self})


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


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
