"""Compilation that is cached where it can be, and rows divided among threads, for all kernels.

Rows are divided among plain threads that run kernels without the interpreter's lock, and not by numba's `prange`:
its portable threading layer aborts a process that enters it from two threads, the OpenMP ones do not survive a
fork, and here `torch.set_num_threads` holds for these kernels as for torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import numba
import torch

P = ParamSpec("P")
R = TypeVar("R")

# Below this many elements per thread, starting a thread costs more than it saves.
_ELEMENTS_PER_THREAD = 1 << 18


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile to machine code that keeps the order of floating-point operations."""
    return _compile(function, fastmath=False)


def compiled_sum(function: Callable[P, R]) -> Callable[P, R]:
    """Compile sums whose terms may be added in any order, which vectorises them. NaN and inf keep their meaning."""
    return _compile(function, fastmath={"reassoc", "nsz"})


def compiled_fused(function: Callable[P, R]) -> Callable[P, R]:
    """Compile like `compiled_sum`, with a product and its sum rounded once: for products of matrices."""
    return _compile(function, fastmath={"reassoc", "nsz", "contract"})


def _compile(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    jit: Any = numba.njit
    try:
        return jit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return jit(nogil=True, error_model="numpy", **options)(function)


def in_threads(n_rows: int, row_size: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` on parts of `range(n_rows)`, as many at once as torch has threads."""
    n_threads = min(torch.get_num_threads(), n_rows, 1 + n_rows * row_size // _ELEMENTS_PER_THREAD)
    if n_threads <= 1:
        work(0, n_rows)
        return
    bounds = [n_rows * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
