"""Fresh memory for large results, always as ordinary tensors.

A view that a custom operator or autograd Function returns may not be edited in place: autograd would not know whose
gradient changes. So nothing here is a view, and codes can be edited as those of any SAE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

# From this size on numpy asks the system for huge pages, which torch does not unless THP_MEM_ALLOC_ENABLE=1.
_HUGE = 1 << 22
_ALIGNMENT = 64


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised contiguous tensor of this shape, with the dtype and device of `like`.

    On a CPU the first touch of a page of 4 KiB costs more than computing what is written to it: 37 MB take 15 ms.
    """
    n_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or n_bytes < _HUGE or not _has_memory(like) or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    memory = torch.from_numpy(np.empty(n_bytes + _ALIGNMENT, dtype=np.uint8))
    start = -memory.data_ptr() % _ALIGNMENT
    return _over(memory, start // like.element_size(), shape, like)


def in_shape(fresh: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor that nobody else holds in another shape: over the same memory if contiguous, but no view."""
    if fresh.shape == torch.Size(shape) and not fresh._is_view():  # pyright: ignore[reportPrivateUsage]
        return fresh
    if not _has_memory(fresh) or torch.compiler.is_compiling():
        return fresh.reshape(*shape)
    fresh = fresh.contiguous()
    return _over(fresh, int(fresh.storage_offset()), shape, fresh)


def _has_memory(tensor: Tensor) -> bool:
    """Tell whether it is a tensor, and no stand-in for one."""
    return type(tensor) in (Tensor, nn.Parameter)


def _over(memory: Tensor, offset: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a tensor over the storage of `memory`, from the element `offset` (of the dtype of `like`) on."""
    out = torch.empty(0, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        return out.set_(memory.untyped_storage(), offset, torch.Size(shape), _strides(shape))


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
