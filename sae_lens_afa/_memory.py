"""Fresh memory for large results."""

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
    """An uninitialised contiguous tensor of this shape, with the dtype and device of `like`.

    On a CPU the first touch of a page of 4 KiB costs more than computing what is written to it: 37 MB take 15 ms.
    """
    n_bytes = math.prod(shape) * like.element_size()
    plain = type(like) in (Tensor, nn.Parameter)  # and not a stand-in without memory
    if like.device.type != "cpu" or n_bytes < _HUGE or not plain or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    memory = torch.from_numpy(np.empty(n_bytes + _ALIGNMENT, dtype=np.uint8))
    start = -memory.data_ptr() % _ALIGNMENT
    return memory[start : start + n_bytes].view(like.dtype).view(*shape)
