"""A batch that several processes share: what is taken over its tokens is taken over those of all ranks.

Most of a training step is a mean over tokens, which gradients averaged over the ranks get right by themselves. What is
not (a cut through the whole batch, a count, the largest value, a latent put where the batch lacks something) goes
through these functions. So do an evaluation's prompts, which the first rank reads, and what each rank has found on its
share of them. Outside `shared_batch` they return what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

# Process group among whose ranks the batch is shared out, in equal parts and in their order; None: there is one rank.
_group: Any = None

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Value = TypeVar("_Value")


class _Merges(Protocol):
    def merge(self, other: Any) -> object:
        """Take in what another has counted."""


_Merging = TypeVar("_Merging", bound=_Merges)


def _eager(function: _Function) -> _Function:
    """Keep a function out of torch.compile's graphs."""
    return cast(_Function, torch.compiler.disable(function))


@contextmanager
def shared_batch(group: Any) -> Generator[None]:
    """Take batches within as shared out among the ranks of a process group."""
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


def n_ranks() -> int:
    """Return among how many ranks the batch is shared out."""
    return 1 if _group is None else dist.get_world_size(_group)


def rank() -> int:
    """Return the number of this rank, from 0."""
    return 0 if _group is None else dist.get_rank(_group)


def n_tokens(acts: Tensor) -> int:
    """Return the tokens of the whole batch, of which this rank has the share `acts` [..., width]."""
    return n_ranks() * acts.shape[:-1].numel()


def summed(value: Tensor) -> Tensor:
    """Return the sum over ranks of a tensor of any shape."""
    return value if _group is None else _reduced(value, dist.ReduceOp.SUM)


def averaged(value: Tensor) -> Tensor:
    """Return the mean over ranks of a tensor of any shape."""
    return value if _group is None else summed(value) / n_ranks()


def largest(value: Tensor) -> Tensor:
    """Return the largest over ranks, entry by entry."""
    return value if _group is None else _reduced(value, dist.ReduceOp.MAX)


def everywhere(mask: Tensor) -> Tensor:
    """Return where a mask is true on all ranks."""
    return mask if _group is None else ~largest((~mask).to(torch.uint8)).bool()


def gathered(rows: Tensor) -> Tensor:
    """Return the rows [tokens, ...] of all ranks in their order, all of one length: [ranks * tokens, ...]."""
    return rows if _group is None else _gathered(rows)


def own_share(available: Callable[[], Tensor], wanted: Tensor) -> Tensor:
    """Return how many each rank gives of what is wanted in all, if the last of the batch go first.

    Args:
        available: How many this rank has, int64 [...]; asked where there are several.
        wanted: How many are to go, of all ranks together, int64 [...].
    """
    if _group is None:
        return wanted
    here = available()
    behind = gathered(here[None])[rank() + 1 :].sum(0)
    return torch.minimum(here, (wanted - behind).clamp(min=0))


# ---- what is no tensor; it must pickle, and be on the CPU


def of_all(mine: _Value) -> list[_Value]:
    """Return what each rank gives, in their order."""
    if _group is None:
        return [mine]
    out: list[Any] = [None] * n_ranks()
    dist.all_gather_object(out, mine, group=_group)
    return out


def merged(mine: _Merging) -> _Merging:
    """Return what all ranks have counted, as one; `mine` itself where there is one rank."""
    first, *others = of_all(mine)
    for other in others:
        first.merge(other)
    return first


def from_first(make: Callable[[], _Value]) -> _Value:
    """Return what the first rank makes; the others wait for it."""
    if _group is None:
        return make()
    box = [make() if rank() == 0 else cast(_Value, None)]
    dist.broadcast_object_list(box, src=dist.get_global_rank(_group, 0), group=_group)
    return box[0]


@_eager
def _reduced(value: Tensor, operation: Any) -> Tensor:
    out = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, op=operation, group=_group)
    return out


@_eager
def _gathered(rows: Tensor) -> Tensor:
    out = rows.new_empty(n_ranks(), *rows.shape)
    dist.all_gather(list(out.unbind()), rows.detach().contiguous(), group=_group)
    return out.flatten(0, 1)
