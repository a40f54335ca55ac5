"""Times and memory: in turn, in one process, as ratios; peaks in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from sae_lens_afa import crossover

T = TypeVar("T")
Seconds = dict[str, list[float]]


def timed(device: torch.device | str, work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns, and the seconds until the device was done."""

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def time_rounds(variants: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> Seconds:
    """Return the seconds of each variant in each round, the variants in turn; a first round is not counted.

    In turn, so that a machine whose speed drifts, or that is shared, slows all of them alike.
    """
    seconds: Seconds = {name: [] for name in variants}
    for counted in range(-1, rounds):
        for name, call in variants.items():
            took = timed(device, call)[1]
            if counted >= 0:
                seconds[name].append(took)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "q25": low, "q75": high}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Return median and quartiles of the ratio within a round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def peak_extra_bytes(call: Callable[..., None], *cases: tuple[Any, ...]) -> list[int]:
    """Return by how much `call(ready, *case)` raises the peak memory after it has called `ready`, for each case.

    Each in a process of its own. On Linux the resident peak, in which all libraries' memory shows, and the process is
    forked from one that has imported what `call` needs and has done nothing else. On a cuda device, by which a case
    then ends, torch's own peak, and the process is a new one: CUDA does not survive a fork.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peaks, call, torch.get_num_threads(), cases).result()


def _peaks(call: Callable[..., None], threads: int, cases: tuple[tuple[Any, ...], ...]) -> list[int]:
    peaks: list[int] = []
    for case in cases:
        context = multiprocessing.get_context("spawn" if str(case[-1]).startswith("cuda") else "fork")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks.append(pool.submit(_peak, call, threads, case).result())
    return peaks


def _peak(call: Callable[..., None], threads: int, args: tuple[Any, ...]) -> int:
    torch.set_num_threads(threads)
    before = 0

    def ready() -> None:
        nonlocal before
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        before = _peak_now()

    call(ready, *args)
    return _peak_now() - before


def _peak_now() -> int:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def setting(device: str) -> dict[str, Any]:
    """Return machine, threads, versions and memory settings, without which a measurement says nothing."""
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "cpu": crossover.processor(),
        "max_density": {work: crossover.max_density(work) for work in ("decode", "step")},
        "threads": torch.get_num_threads(),
        "THP_MEM_ALLOC_ENABLE": os.environ["THP_MEM_ALLOC_ENABLE"],
        "transparent_hugepage": pages.read_text().strip() if pages.is_file() else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "numba", "triton", "sae-lens", "sae-lens-afa")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
