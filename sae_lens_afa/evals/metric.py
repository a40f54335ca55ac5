"""A metric as such: how it is computed from a stream of tokens, named and shown.

Light: imports neither torch nor pandas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from sae_lens_afa.evals.moments import Array, quantile

if TYPE_CHECKING:
    import pandas as pd

# The paper's form: the bias as one more feature, against ||z||. The centred one: without it, against ||z - b_dec||.
PAPER, CENTERED = "", "centered_"
FORMS = {
    PAPER: "bias as a feature, against ||z|| (the paper's form)",
    CENTERED: "centred, against ||z - b_dec||",
}
CARD, SWEEPS = "card", "sweeps"
MEAN, SUM, MEDIAN = "mean", "sum", "median"
QUANTILES = {"q05": 0.05, "q25": 0.25, MEDIAN: 0.5, "q75": 0.75, "q95": 0.95}


class TokenColumns(NamedTuple):
    """Norms of some tokens in one form, [tokens] each; NaN where they are not known.

    Attributes:
        l0: Active features.
        squared_error: ||z - z^||^2.
        dense_norm: ||z||, or ||z - b_dec||.
        feature_norm: ||[f_i ||d_i||]||, with or without the bias.
        recons_norm: ||z^||, or ||z^ - b_dec||.
        d_sae: Features of the SAE.
    """

    l0: Array
    squared_error: Array
    dense_norm: Array
    feature_norm: Array
    recons_norm: Array
    d_sae: int


class Sums(Protocol):
    """Sums over all tokens of a stream, as far as metrics read them (see `TokenSums`)."""

    d_sae: int
    n_tokens: int
    n_nonfinite: int

    def mean(self, name: str) -> float | None: ...
    def total(self, name: str) -> int | None: ...
    def pearson(self, form: str) -> float | None: ...
    def explained_variance(self, *, raw: bool = False) -> float | None: ...


class Stream(NamedTuple):
    """A stream of tokens: sums over all of them, and a table with the values of those that were kept."""

    sums: Sums
    table: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measured value: how it is computed, named and shown.

    Attributes:
        name: Key of `AFAResult.to_dict`.
        title: Row in the terminal's table; none if empty.
        heading: Column of wide tables: of model cards, `info` and sweeps.
        style: Format of its values.
        spread_style: Format of a row with the 5 % and 95 % quantiles of its `column` below; no such row if empty.
        shown_in: Where it is shown under its heading: `CARD`, `SWEEPS`.
        only_if_any: Zero is not worth showing.
        form: `PAPER` or `CENTERED`; None for a metric that is the same in both.
        per_token: Value of each token.
        column: Name of the values in the per-token table; empty to leave them out.
        summary: Summary of the values: `MEAN`, `SUM`, `MEDIAN`, "q05", "q25", "q75" or "q95". Means and sums are of all
            tokens, quantiles of a `column` of those that were kept.
        of_stream: Value from the sums of all tokens and the form, for a metric without `per_token`.
    """

    name: str
    title: str = ""
    heading: str = ""
    style: str = ".4g"
    spread_style: str = ""
    shown_in: tuple[str, ...] = ()
    only_if_any: bool = False
    form: str | None = None
    per_token: Callable[[TokenColumns], Array] | None = None
    column: str = ""
    summary: str = MEAN
    of_stream: Callable[[Stream, str], float | None] | None = None

    @property
    def is_summed(self) -> bool:
        """True if its values per token are added up over the whole stream."""
        return self.per_token is not None and self.summary not in QUANTILES

    def value(self, stream: Stream) -> float | None:
        """Return its value on a stream; None where that is not known, or measured elsewhere."""
        if self.of_stream is not None:
            return self.of_stream(stream, self.form or PAPER)
        if self.per_token is None:
            return None
        if self.summary in QUANTILES:
            return quantile(stream.table[self.column].to_numpy(dtype=np.float64), QUANTILES[self.summary])
        return stream.sums.mean(self.name) if self.summary == MEAN else stream.sums.total(self.name)

    def cell(self, value: float | None) -> str:
        """Return a value as tables show it, "-" where there is nothing to show."""
        return "-" if value is None or (self.only_if_any and value == 0) else format(value, self.style)
