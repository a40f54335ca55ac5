"""One SAE judged on activations that are given."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_afa import over_ranks
from sae_lens_afa.evals.metrics import MAX_EXACT_TOKENS, AFAMetrics
from sae_lens_afa.evals.moments import Array, median
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.evals.token_norms import Raw, check_shapes, token_blocks

# Tokens of a stream from which the median norm is taken before the first of them is judged.
CALIBRATION_TOKENS = 16_384


class SAEJudge:
    """A stream of raw activations that goes through one SAE into its metrics: of all tokens, and without outliers.

    Args:
        sae: The SAE.
        activation_scaler: See `SAESpace`.
        outlier_norm_multiple: Judge a second time without tokens whose hook-point norm is above so many medians.
        rescale_by_token_std: Give norms in raw units where the SAE's layer_norm divided each token by its own
            standard deviation.
        max_exact_tokens: See `AFAMetrics`.
        seed: See `AFAMetrics`.

    Raises:
        TypeError, ValueError: as `SAESpace`; or an option that the SAE does not allow.
    """

    def __init__(
        self,
        sae: SAE[Any],
        *,
        activation_scaler: ActivationScaler | None = None,
        outlier_norm_multiple: float | None = None,
        rescale_by_token_std: bool = False,
        max_exact_tokens: int = MAX_EXACT_TOKENS,
        seed: int = 0,
    ) -> None:
        self.space = SAESpace(sae, activation_scaler)
        if outlier_norm_multiple is not None and not outlier_norm_multiple > 0:
            raise ValueError(f"outlier_norm_multiple must be > 0, got {outlier_norm_multiple}.")
        if rescale_by_token_std and sae.cfg.normalize_activations != "layer_norm":
            raise ValueError(
                "rescale_by_token_std is for SAEs with normalize_activations='layer_norm', this one has"
                f" {sae.cfg.normalize_activations!r}: its norms are in raw units already."
            )
        self._multiple, self._rescale = outlier_norm_multiple, rescale_by_token_std
        self._metrics, self._kept = (
            AFAMetrics(self.space.d_sae, max_exact_tokens=max_exact_tokens, seed=seed) for _ in range(2)
        )
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._outlier_norm: float | None = None

    def add(self, activations: Tensor, token_index: Tensor | None = None) -> int:
        """Judge a batch of raw activations, or let it wait for `settle`; return its number of tokens.

        Args:
            activations: [..., d_in], or [..., heads, d_head].
            token_index: Numbers of the tokens in `AFAResult.tokens`, [tokens]; their place in the stream if None.
        """
        rows = self.space.rows(activations)
        if token_index is None:
            token_index = torch.arange(len(rows)) + self.n_given
        if self._has_no_limit:
            self._waiting.append((rows, token_index))
        else:
            self._judge(rows, token_index)
        return len(rows)

    @property
    def n_given(self) -> int:
        """Tokens given so far."""
        waiting = sum(len(rows) for rows, _ in self._waiting)
        return self._metrics.n_tokens + self._metrics.n_nonfinite + waiting

    def settle(self, n_given: int) -> None:
        """Judge what waits, once all ranks together were given enough tokens for the median norm: `n_given`.

        Ranks that share an evaluation call this together, after batches of the same round.
        """
        if self._has_no_limit and n_given >= CALIBRATION_TOKENS:
            self._judge_waiting()

    def join_ranks(self) -> None:
        """Count the tokens of all ranks that share the evaluation; they call this together."""
        if self._has_no_limit:
            self._judge_waiting()
        self._metrics = over_ranks.merged(self._metrics)
        if self._multiple is not None:
            self._kept = over_ranks.merged(self._kept)

    @property
    def _has_no_limit(self) -> bool:
        """True where outliers are to be left out and it is not known yet which they are."""
        return self._multiple is not None and self._outlier_norm is None

    def _judge_waiting(self) -> None:
        assert self._multiple is not None
        middle = median(self._first_norms())
        self._outlier_norm = float("inf") if middle is None else self._multiple * middle
        waiting, self._waiting = self._waiting, []
        for rows, token_index in waiting:
            self._judge(rows, token_index)

    def _first_norms(self) -> Array:
        """Return the finite norms of the stream's first batches, of all ranks, that have enough tokens together."""
        mine = [(int(index[0]), _norms(rows).double().numpy()) for rows, index in self._waiting]
        norms = [np.empty(0)]
        for _, batch in sorted(chain.from_iterable(over_ranks.of_all(mine)), key=lambda each: each[0]):
            if sum(map(len, norms)) < CALIBRATION_TOKENS:
                norms.append(batch)
        found = np.concatenate(norms)
        return found[np.isfinite(found)]

    def _judge(self, rows: Tensor, token_index: Tensor) -> None:
        space, coded = self.space, self.space.code(rows)
        check_shapes(coded.dense, coded.feature_acts, space.d_in, space.d_sae, coded.recons, space.b_dec)
        scale, token_std = (coded.raw_std, None) if self._rescale else (None, coded.raw_std)
        inlier = None if self._outlier_norm is None else _norms(rows) <= self._outlier_norm
        start = 0
        for block in token_blocks(
            coded.dense, coded.feature_acts, space.decoder_norm, space.b_dec, coded.recons, scale,
            token_index.to(coded.dense.device), token_std, Raw(rows.to(coded.raw_recons.device), coded.raw_recons),
        ):  # fmt: skip
            self._metrics.add(block)
            stop = start + block.columns.shape[1]
            if inlier is not None:
                self._kept.add(block[inlier[start:stop]])
            start = stop

    def result(self) -> AFAResult:
        """Return the metrics of all tokens so far.

        Raises:
            ValueError: no token is left to judge.
        """
        if self._waiting:
            self._judge_waiting()
        result = self._metrics.compute()
        if self._outlier_norm is None:
            return result
        if self._kept.n_tokens == 0:
            raise ValueError(
                f"no tokens to judge: all {result.n_tokens} are outliers by outlier_norm_multiple={self._multiple}"
                f" (norm above {self._outlier_norm:.4g}); raise it."
            )
        return result.with_outliers_left_out(self._kept.compute(), self._outlier_norm)

    @property
    def metrics(self) -> AFAMetrics:
        """The metrics of all tokens judged so far, for merging with those of another process."""
        return self._metrics


def evaluate_activations(
    sae: SAE[Any],
    activations: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 4096,
    activation_scaler: ActivationScaler | None = None,
    outlier_norm_multiple: float | None = None,
    rescale_by_token_std: bool = False,
    max_exact_tokens: int = MAX_EXACT_TOKENS,
    seed: int = 0,
    progress: bool = False,
) -> AFAResult:
    """Judge an SAE by AFA on activations, those that this process is given.

    Args:
        sae: Any SAELens SAE with a linear decoder, for inference or training; not changed.
        activations: Raw hook-point values [..., d_in] (hook_z: [..., heads, d_head]), or an iterable of such
            batches. The SAE's own normalisation is applied.
        batch_size: Tokens that are encoded at a time.
        activation_scaler: The trainer's scaling, where it is not folded into the SAE (see `SAESpace`).
        outlier_norm_multiple: Give the metrics also without tokens whose norm is above so many medians
            (`AFAResult.without_outliers`); the median is that of the first 16,384 tokens.
        rescale_by_token_std: For an SAE with layer_norm, under which every ||z|| is sqrt(d_in - 1): multiply the
            norms of each token by its own standard deviation. Ratios do not change, correlations become meaningful.
            The ZF plot is drawn in these units anyway.
        max_exact_tokens: Up to so many tokens medians are exact (see `AFAMetrics`).
        seed: Seed of the sample beyond that.
        progress: Show a progress bar.

    Returns:
        The metrics, and the norms of each token in `tokens`.

    Raises:
        TypeError: a transcoder or a temporal SAE, or activations that are not floating point.
        ValueError: no tokens, or a shape that does not fit; the message says which.

    Example:
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> sae = afa.TopAFASAE(afa.TopAFASAEConfig(d_in=8, d_sae=32))
        >>> result = afa.evaluate_activations(sae, torch.randn(100, 8))
        >>> result.n_tokens
        100
        >>> result.explained_variance <= 1
        True
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    judge = SAEJudge(
        sae, activation_scaler=activation_scaler, outlier_norm_multiple=outlier_norm_multiple,
        rescale_by_token_std=rescale_by_token_std, max_exact_tokens=max_exact_tokens, seed=seed,
    )  # fmt: skip
    batches: Iterable[Tensor] = [activations] if isinstance(activations, Tensor) else activations
    rows = chain.from_iterable(judge.space.rows(batch).split(batch_size) for batch in batches)
    # Where ranks share an evaluation, too: what one of them is given here, the others know nothing of.
    with over_ranks.shared_batch(None), tqdm(unit=" tokens", disable=not progress) as bar:
        for batch in rows:
            bar.update(judge.add(batch))
            judge.settle(judge.n_given)
        return judge.result()


def _norms(rows: Tensor) -> Tensor:
    """Return hook-point norms, on the CPU."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32).cpu()
