"""The transforms of torch.func (vmap, grad, vjp, jvp, Jacobians), and differentiation forwards.

They hand tensors around that stand for others. Through torch's own operations they can follow; through operators that
read values, and autograd Functions written for one pass, they cannot, and some would take a derivative for zero without
a word. So where one is at work, results are put together by plain operations around an operator's choice, which is a
constant. That takes more memory than what is done otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def at_work() -> bool:
    """Return whether a transform is at work around this call; while compiling, False."""
    if torch.compiler.is_compiling():
        return False
    # No public function tells. torch's own autograd Functions ask the first; the second counts dual levels from 0.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def choose(rule: Any, acts: Tensor, *args: Any) -> Tensor:
    """Return what a selection rule keeps of `acts`; what it chooses by are constants."""
    constants = (arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
    return kept(rule(acts.detach(), *constants), acts)


def kept(chosen: Tensor, acts: Tensor) -> Tensor:
    """Return `acts` where `chosen`, a rule's result for them as constants, is positive, else `chosen`."""
    return torch.where(chosen > 0, acts, chosen)


def map_rows(operator: Any, *of_rows: int) -> None:
    """Register how vmap maps an operator: its arguments `of_rows` gain an axis in front, and so does its result.

    Where another argument is mapped, too, such as the weights of several SAEs, the operator is called for each.
    """

    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        args = tuple(arg if dim is None else arg.movedim(dim, 0) for arg, dim in zip(args, in_dims, strict=True))
        if any(dim is not None for i, dim in enumerate(in_dims) if i not in of_rows):
            each = (
                operator(*(arg if dim is None else arg[i] for arg, dim in zip(args, in_dims, strict=True)))
                for i in range(info.batch_size)
            )
            return torch.stack(list(each)), 0
        whole = (
            arg.expand(info.batch_size, *arg.shape) if i in of_rows and in_dims[i] is None else arg
            for i, arg in enumerate(args)
        )
        return operator(*whole), 0

    operator.register_vmap(mapped)
