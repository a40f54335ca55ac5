"""AFA metrics over a stream of tokens: update, merge, compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa import over_ranks
from sae_lens_afa.evals.metric import PAPER, Stream
from sae_lens_afa.evals.metric_list import METRICS
from sae_lens_afa.evals.moments import Array
from sae_lens_afa.evals.reservoir import Reservoir
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.evals.sums import TokenSums, columns_by_form
from sae_lens_afa.evals.token_norms import (
    COLUMNS,
    Raw,
    TokenBlock,
    check_shapes,
    decoder_norms,
    flat_rows,
    token_blocks,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_EXACT_TOKENS = 2**20


class AFAMetrics:
    """The metrics of a stream of tokens, in a memory of a few numbers per token.

    Means, fractions, explained variance and Pearson correlations are of all tokens, accumulated in float64.
    Medians, quantiles and rank correlations are exact up to `max_exact_tokens` tokens and beyond that come from
    a uniform sample of so many. Results depend on the order of updates and merges only by float64 rounding.

    Args:
        d_sae: Features of the SAE (the bias is not one of them).
        max_exact_tokens: Tokens whose norms are kept, 80 bytes each.
        seed: Seed of the sample.

    Raises:
        ValueError: `d_sae` or `max_exact_tokens` below 1.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> metrics = afa.AFAMetrics(d_sae=3)
        >>> z = torch.tensor([[3.0, 4.0, 0.0]])
        >>> metrics.update(z, feature_acts=z, W_dec=torch.eye(3), b_dec=torch.zeros(3))
        >>> metrics.compute().norm_ratio_median
        1.0
    """

    def __init__(self, d_sae: int, *, max_exact_tokens: int = MAX_EXACT_TOKENS, seed: int = 0) -> None:
        for name, value in (("d_sae", d_sae), ("max_exact_tokens", max_exact_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.d_sae = d_sae
        self._kept = Reservoir(len(COLUMNS), max_exact_tokens, seed)
        self._sums = TokenSums(d_sae)
        self._known: tuple[str, ...] | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens counted so far; those with a NaN or an infinity are not among them."""
        return self._sums.n_tokens

    @property
    def n_nonfinite(self) -> int:
        """Tokens left out so far because they hold a NaN or an infinity."""
        return self._sums.n_nonfinite

    @torch.no_grad()
    def update(
        self,
        dense: Float[Tensor, "*tokens d_in"],
        feature_acts: Float[Tensor, "*tokens d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"] | None = None,
        recons: Float[Tensor, "*tokens d_in"] | None = None,
        *,
        acts_include_decoder_norm: bool = False,
        raw: tuple[Float[Tensor, "*tokens d_in"], Float[Tensor, "*tokens d_in"]] | None = None,
    ) -> None:
        """Count a batch of tokens.

        Args:
            dense: z, un-centred, in the space in which the SAE decodes; [..., d_in], any floating dtype and device.
            feature_acts: f, [..., d_sae], strided or COO, of any sign.
            W_dec: Decoder, [d_sae, d_in]; its row norms scale f.
            b_dec: Decoder bias, [d_in]: one more feature in the paper's form, what is subtracted in the centred
                one. None for an SAE without a bias.
            recons: z^ = D f + b_dec in the same space, [..., d_in]; in every batch of a stream or in none.
            acts_include_decoder_norm: `feature_acts` are f_i ||d_i|| already (SAELens' topk with
                `rescale_acts_by_decoder_norm`).
            raw: x and x^ at the hook point, where `dense` is normalised: for `explained_variance_raw`.

        Raises:
            ValueError: an empty batch, or shapes that do not fit; the message names the tensor and the axis.
        """
        norms = decoder_norms(W_dec)
        if len(norms) != self.d_sae:
            raise ValueError(f"W_dec must have d_sae = {self.d_sae} rows, got shape {list(W_dec.shape)}.")
        check_shapes(dense, feature_acts, W_dec.shape[-1], self.d_sae, recons, b_dec)
        if dense.numel() == 0:
            raise ValueError(f"an empty batch: dense has shape {list(dense.shape)}; give at least one token.")
        rows = flat_rows(dense)
        index = torch.arange(self.n_tokens, self.n_tokens + len(rows), device=rows.device)
        recons = None if recons is None else flat_rows(recons)
        norms = None if acts_include_decoder_norm else norms
        if raw is not None and any(vectors.shape != dense.shape for vectors in raw):
            shapes = " and ".join(str(list(vectors.shape)) for vectors in raw)
            raise ValueError(f"raw must be two tensors of the shape of dense, {list(dense.shape)}, got {shapes}.")
        at_hook = None if raw is None else Raw(*(flat_rows(vectors) for vectors in raw))
        for block in token_blocks(rows, flat_rows(feature_acts), norms, b_dec, recons, None, index, raw=at_hook):
            self.add(block)

    def add(self, block: TokenBlock) -> None:
        """Count tokens whose norms are known, as `token_blocks` gives them."""
        finite = block.columns[[COLUMNS.index(name) for name in block.known]].isfinite().all(0)
        self._sums.n_nonfinite += int((~finite).sum())
        if not finite.any():
            return
        if self._known not in (None, block.known):
            raise ValueError(
                f"every batch must give the same columns: so far {self._known}, now {block.known}."
                " Give recons in every update or in none, and do not mix from_norms with update."
            )
        self._known = block.known
        if not finite.all():
            block = block[finite]
        rows = block.columns.numpy()
        self._kept.add(rows)
        self._sums.add(dict(zip(COLUMNS, rows, strict=True)), block)

    def merge(self, other: AFAMetrics) -> AFAMetrics:
        """Count the tokens of `other` too (another batch, another process); `other` is left as it is.

        Returns:
            This object.

        Raises:
            ValueError: the two are of different settings, one has reconstructions and the other has not, or they
                are one object, whose tokens would count twice.
        """
        if other is self:
            raise ValueError("other must be another AFAMetrics: merged with itself, its tokens would count twice.")
        for name, mine, theirs in (
            ("d_sae", self.d_sae, other.d_sae),
            ("max_exact_tokens", self._kept.capacity, other._kept.capacity),
            ("seed", self._kept.seed, other._kept.seed),
        ):
            if mine != theirs:
                raise ValueError(f"cannot merge metrics with different {name}: {mine} and {theirs}.")
        if None not in (self._known, other._known) and self._known != other._known:
            raise ValueError(f"cannot merge metrics of different columns: {self._known} and {other._known}.")
        self._known = self._known or other._known
        self._kept.merge(other._kept)
        self._sums.merge(other._sums)
        return self

    def all_gather(self, group: Any = None) -> AFAMetrics:
        """Return the metrics of the tokens of all ranks, each of which must call this; `self` is left as it is.

        Args:
            group: Process group of torch.distributed; None: the default one.

        Raises:
            ValueError: as `merge`.
            RuntimeError: torch.distributed is not initialised.
        """
        if not dist.is_initialized():
            raise RuntimeError(
                "all_gather needs the process group of torch.distributed: start the script with torchrun, and call"
                " torch.distributed.init_process_group()."
            )
        with over_ranks.shared_batch(dist.group.WORLD if group is None else group):
            return over_ranks.merged(self)

    def compute(self) -> AFAResult:
        """Return the metrics of all tokens so far.

        Raises:
            ValueError: there are none, or none without a NaN or an infinity.
        """
        if self.n_tokens == 0:
            bad = self.n_nonfinite
            raise ValueError(f"no tokens to judge: {f'all {bad} hold a NaN or an infinity' if bad else 'none given'}.")
        stream = Stream(self._sums, self.tokens())
        return AFAResult.from_values({metric.name: metric.value(stream) for metric in METRICS}, tokens=stream.table)

    def tokens(self) -> pd.DataFrame:
        """Return a row per token that is kept: its norms, and the values that metrics derive from them."""
        import pandas as pd

        columns = dict(zip(COLUMNS, self._kept.rows(), strict=True))
        forms = columns_by_form(columns, self.d_sae)
        for metric in METRICS:
            if metric.per_token is not None and metric.column and metric.column not in columns:
                columns[metric.column] = metric.per_token(forms[metric.form or PAPER])
        table = pd.DataFrame(columns).sort_values("token_index", kind="stable", ignore_index=True)
        return table.astype({"token_index": "int64"})

    @classmethod
    def from_norms(
        cls,
        norm_z: Float[Tensor, " tokens"] | Array,
        norm_f: Float[Tensor, " tokens"] | Array,
        nmse: Float[Tensor, " tokens"] | Array | None = None,
        *,
        d_sae: int,
        max_exact_tokens: int = MAX_EXACT_TOKENS,
        seed: int = 0,
    ) -> AFAMetrics:
        """Return metrics of tokens of which only the norms are known, such as published ones.

        Args:
            norm_z: Dense norms, un-centred, [tokens].
            norm_f: Feature norms with the bias as a feature, [tokens].
            nmse: ||z - z^||^2 / ||z||^2 of each token, or None.
            d_sae: Features of the SAE.
            max_exact_tokens: As for the class.
            seed: As for the class.

        Raises:
            ValueError: no tokens, lengths that differ, or a negative norm.
        """
        metrics = cls(d_sae, max_exact_tokens=max_exact_tokens, seed=seed)
        z, f = _vector(norm_z), _vector(norm_f)
        error = torch.full_like(z, torch.nan) if nmse is None else _vector(nmse)
        if z.ndim != 1 or z.shape != f.shape or z.shape != error.shape:
            shapes = ", ".join(str(list(values.shape)) for values in (z, f, error))
            raise ValueError(f"norm_z, norm_f and nmse must be vectors of one length, got shapes {shapes}.")
        if len(z) == 0:
            raise ValueError("no tokens to judge: the vectors of norms are empty.")
        if (z < 0).any() or (f < 0).any():
            raise ValueError("a norm is negative: give norms, not activations.")
        columns = torch.full((len(COLUMNS), len(z)), torch.nan, dtype=torch.float64)
        known = {"token_index": torch.arange(len(z)), "dense_norm": z, "feature_norm": f}
        if nmse is not None:
            known["squared_error"] = error * z**2
        for name, column in known.items():
            columns[COLUMNS.index(name)] = column
        metrics.add(TokenBlock(columns, None, tuple(known)))
        return metrics


def _vector(values: Tensor | Array) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64)
    return torch.tensor(np.asarray(values, dtype=np.float64))
