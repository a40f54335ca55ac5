"""Matching tokens and features of a batch, given how many matches there may be.

Mutual Choice keeps the largest pre-activations of the whole batch, Feature Choice the largest of each feature
(arXiv 2411.02124). Both come down to a cut: the value of the last match. It is found on the values alone, so
nothing as large as the batch is ever sorted with its indices.

Only positive pre-activations are matched, so fewer matches than allowed may be found. Among equal values at the
cut the lowest index (of the batch, row by row; of the token) is matched first; float64 is compared as float32.

A token that is not finite is passed through as it is, so that NaN and inf stay visible, and is as if it were not in
the batch: it is matched with nothing, and takes its share of the matches with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sae_lens_afa import _transforms, over_ranks
from sae_lens_afa._memory import in_shape
from sae_lens_afa.saes._cut import feature_cuts, global_cut, rows_per_block

__all__ = [
    "as_compared",
    "feature_choice",
    "finite_tokens",
    "firing_counts",
    "just_below",
    "matches_of",
    "mutual_choice",
    "reached_counts",
    "tokens_of_all",
]

_SMALLEST = 2.0**-149  # positive float32


def mutual_choice(acts: Tensor, n_matches: int) -> tuple[Tensor, Tensor]:
    """Keep the `n_matches` largest positive entries of the batch.

    Args:
        acts: Pre-activations, shape [..., d_sae], any floating dtype.
        n_matches: Number of entries to keep, from 1 to that of all entries.

    Returns:
        `acts` with all other entries zeroed, and the cut, float32 []: the smallest value kept, or 0 where fewer
        than `n_matches` entries are positive, or NaN where no token is finite. The gradient is that of a constant
        mask.
    """
    return _chosen(torch.ops.sae_lens_afa.mutual_choice, acts, n_matches)


def feature_choice(acts: Tensor, n_matches: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the largest positive entries of each feature.

    Args:
        acts: Pre-activations, shape [..., d_sae], any floating dtype; what precedes d_sae are the tokens.
        n_matches: Most tokens for each feature, int64 [d_sae], from 0 to the number of tokens.

    Returns:
        `acts` with all other entries zeroed, and the cuts, float32 [d_sae]: the smallest value kept of each
        feature, 0 where fewer entries are positive than it may have, inf where it may have none. The gradient is
        that of a constant mask.
    """
    return _chosen(torch.ops.sae_lens_afa.feature_choice, acts, n_matches)


def _chosen(rule: Any, acts: Tensor, n_matches: Any) -> tuple[Tensor, Tensor]:
    if not _transforms.at_work():
        return rule(acts, n_matches)
    chosen, cut = rule(acts.detach(), n_matches)
    return _transforms.kept(chosen, acts), cut


@torch.no_grad()
def firing_counts(acts: Tensor, above: Tensor | float = 0.0) -> Tensor:
    """Count the tokens on which each feature of `acts` [..., d_sae] is larger than `above`: int64 [d_sae]."""
    return _counts(acts, lambda part: part > above)


@torch.no_grad()
def reached_counts(acts: Tensor, threshold: Tensor) -> Tensor:
    """Count the tokens on which each feature is positive and at least its threshold [d_sae]: int64 [d_sae]."""
    lowest = threshold.clamp(min=_SMALLEST)
    return _counts(acts, lambda part: as_compared(part) >= lowest)


def just_below(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest value of `dtype` that is less than a float32 threshold, and not negative; NaN for NaN.

    What reaches the threshold is what exceeds this: JumpReLU's comparison.
    """
    lower = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf)).clamp(min=0)
    rounded = lower.to(dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        return rounded
    # Rounded to the nearest, which may be the threshold itself or beyond; positive floats are ordered as their bits.
    return torch.where(rounded > lower, (rounded.view(torch.int16) - 1).view(dtype), rounded)


def _counts(acts: Tensor, fires: Callable[[Tensor], Tensor]) -> Tensor:
    rows = acts.reshape(-1, acts.shape[-1])
    counts = torch.zeros(rows.shape[-1], dtype=torch.int64, device=acts.device)
    for part in rows.split(rows_per_block(rows)):
        counts += fires(part).sum(0)
    return counts


@torch.no_grad()
def finite_tokens(acts: Tensor) -> Tensor | None:
    """Mark the tokens of `acts` [..., d_sae] that are finite in all entries, bool [...]; None where all are."""
    # One pass with nothing kept: a sum is finite only if all its terms are.
    accurate = torch.promote_types(acts.dtype, torch.float32)
    if bool(acts.sum(dtype=accurate).isfinite()):
        return None
    rows = acts.reshape(-1, acts.shape[-1])
    finite = torch.cat([part.isfinite().all(-1) for part in rows.split(rows_per_block(rows))])
    return None if bool(finite.all()) else finite.view(acts.shape[:-1])


def tokens_of_all(acts: Tensor) -> int:
    """Return how many tokens [..., d_sae] there are on all ranks, of which each may have another number."""
    here = acts.shape[:-1].numel()
    return here if over_ranks.n_ranks() == 1 else int(over_ranks.summed(torch.tensor(here, device=acts.device)))


def matches_of(n_matches: int, n_finite: int, n_tokens: int) -> int:
    """Return the number of a batch's matches that its finite tokens have, in proportion."""
    return n_matches if n_finite == n_tokens else round(n_matches * n_finite / n_tokens)


def as_compared(acts: Tensor) -> Tensor:
    """Return activations as they are compared: float64 as float32, all else as it is."""
    return acts.float() if acts.dtype == torch.float64 else acts


# ---- what is kept


def _keep_from(rows: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Keep all positive entries from the cut on, ties included; return them and their number in each column."""
    # With an axis: a 0-d tensor would be rounded to the dtype of the rows before it is compared with them.
    lowest = cut.clamp(min=_SMALLEST).reshape(-1)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    counts = torch.zeros(rows.shape[-1], dtype=torch.int64, device=rows.device)
    step = rows_per_block(rows)
    for part, kept in zip(rows.split(step), out.split(step), strict=True):
        kept.copy_(part).masked_fill_(part < lowest, 0)  # NaN is not smaller, and stays
        counts += (part >= lowest).sum(0)
    return out, counts


def _drop_global_surplus(out: Tensor, cut: Tensor, surplus: int) -> None:
    """Zero the last `surplus` entries that equal the cut."""
    for part in reversed(out.split(rows_per_block(out))):
        if surplus <= 0:
            return
        last = (part == cut).nonzero()[-surplus:]
        part[last[:, 0], last[:, 1]] = 0
        surplus -= len(last)


def _drop_feature_surplus(out: Tensor, cuts: Tensor, surplus: Tensor) -> None:
    """Zero in each column the last `surplus` entries that equal its cut."""
    for columns in (surplus > 0).nonzero().squeeze(1).split(max(1, out.shape[1] // 16)):
        kept = out[:, columns]
        equal = kept == cuts[columns]
        from_last = equal.flip(0).cumsum(0, dtype=torch.int32).flip(0)
        out[:, columns] = kept.masked_fill_(equal & (from_last <= surplus[columns]), 0)


def _applied(keep: Callable[[Tensor], tuple[Tensor, Tensor]], acts: Tensor) -> tuple[Tensor, Tensor]:
    """Apply `keep` to the finite ones of [tokens, d_sae]; the result has the shape and dtype of `acts`."""
    rows = acts.detach().reshape(-1, acts.shape[-1])
    finite = finite_tokens(rows)
    if finite is None:
        out, cut = _kept(keep, rows)
        return in_shape(out, acts.shape), cut
    out = rows.clone(memory_format=torch.contiguous_format)
    out[finite], cut = _kept(keep, rows[finite])
    return in_shape(out, acts.shape), cut


def _kept(keep: Callable[[Tensor], tuple[Tensor, Tensor]], rows: Tensor) -> tuple[Tensor, Tensor]:
    out, cut = keep(as_compared(rows))
    return (torch.where(out == 0, 0, rows) if rows.dtype == torch.float64 else out), cut


# Custom operators, so that torch.compile keeps its graph whole around the data-dependent selection.
@torch.library.custom_op(
    "sae_lens_afa::mutual_choice", mutates_args=(), schema="(Tensor acts, int n_matches) -> (Tensor, Tensor)"
)
def _mutual_choice(acts: Tensor, n_matches: int) -> tuple[Tensor, Tensor]:
    n_tokens = over_ranks.n_tokens(acts)

    def keep(rows: Tensor) -> tuple[Tensor, Tensor]:
        here = matches_of(n_matches, tokens_of_all(rows), n_tokens)
        if here == 0:
            return torch.zeros_like(rows), torch.full((), torch.nan, device=rows.device)
        cut = global_cut(rows, here)
        out, counts = _keep_from(rows, cut)
        surplus = over_ranks.summed(counts.sum()) - here
        _drop_global_surplus(out, cut, int(over_ranks.own_share(lambda: (out == cut).sum(), surplus)))
        return out, cut

    return _applied(keep, acts)


@torch.library.custom_op(
    "sae_lens_afa::feature_choice", mutates_args=(), schema="(Tensor acts, Tensor n_matches) -> (Tensor, Tensor)"
)
def _feature_choice(acts: Tensor, n_matches: Tensor) -> tuple[Tensor, Tensor]:
    n_tokens = over_ranks.n_tokens(acts)

    def keep(rows: Tensor) -> tuple[Tensor, Tensor]:
        n_finite = tokens_of_all(rows)
        if n_finite == 0:
            return rows, torch.full(n_matches.shape, torch.nan, device=rows.device)
        here = n_matches if n_finite == n_tokens else (n_matches * (n_finite / n_tokens)).round().long()
        cuts = feature_cuts(rows, here)
        out, counts = _keep_from(rows, cuts)
        surplus = over_ranks.summed(counts) - here
        _drop_feature_surplus(out, cuts, over_ranks.own_share(lambda: (out == cuts).sum(0), surplus))
        return out, cuts

    return _applied(keep, acts)


@_mutual_choice.register_fake
def _like_one(acts: Tensor, n_matches: int) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportUnusedFunction]  (torch keeps it)  # noqa: ARG001
    return acts.new_empty(acts.shape), acts.new_empty((), dtype=torch.float32)


@_feature_choice.register_fake
def _like_each(acts: Tensor, n_matches: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportUnusedFunction]  (torch keeps it)  # noqa: ARG001
    return acts.new_empty(acts.shape), acts.new_empty(acts.shape[-1:], dtype=torch.float32)


def _keep_output(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001  (torch's signature)
    # The output is kept for the decoder's gradient anyway: the mask costs no memory.
    ctx.save_for_backward(output[0])


def _masked_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
    (output,) = ctx.saved_tensors
    return grad * (output > 0), None


_mutual_choice.register_autograd(_masked_gradient, setup_context=_keep_output)
_feature_choice.register_autograd(_masked_gradient, setup_context=_keep_output)
