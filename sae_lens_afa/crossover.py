"""Lists of active features or dense matmuls: whichever is faster on the processor at hand, by measurement.

Up to which density the lists win differs by a factor of three between processors: it depends on how fast the matmul
is, and on the caches. So both are timed once, for about half a second, and the answer is kept on disk: the same path,
and the same rounding, in every later run on that machine. Nothing else depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa import _transforms, sparse
from sae_lens_afa.files import cache_folder, write_whole
from sae_lens_afa.selection._backends import backend_for

Work = Literal["decode", "step"]
# The size from which lists are worth compiling for.
MIN_SIZE = 1 << 18
# What is timed: rows as long and tokens as many as in practice, since caches matter, of fewer features.
_TOKENS, _D_IN, _D_SAE = 512, 768, 1024
_DENSITIES = (0.1, 0.4)
# Where the two are level the matmul is taken: what it costs does not depend on the batch. Part of the crossing, up to
# which lists are.
_CAUTION = 0.9
_ROUNDS = 3
# What a measurement may say; one that is disturbed says no nonsense.
_LEAST, _MOST = 0.02, 0.5


def listed_where_faster(codes: Float[Tensor, "tokens d_sae"], work: Work) -> sparse.ActiveFeatures | None:
    """List the active entries of a batch of codes; None where the dense matmuls are faster, or all there is.

    That is: the codes are dense or few, on an accelerator (where asking how many are active would wait for it), of
    another type than float32 or float64, or numba is not there or not wanted (SAE_LENS_AFA_BACKEND).

    Args:
        codes: The codes.
        work: What is to be done with them: decoding alone, or a training step's decoding and gradients.
    """
    if (
        codes.device.type != "cpu"
        or codes.dtype not in (torch.float32, torch.float64)
        or codes.numel() < MIN_SIZE
        or torch.compiler.is_compiling()
        or _transforms.at_work()
        or backend_for(codes.device) != "numba"
    ):
        return None
    return sparse.active_features(codes, max_density(work))


def max_density(work: Work) -> float:
    """Return the density up to which lists are faster here: kept from an earlier run, or measured now."""
    return _densities(torch.get_num_threads())[work]


@lru_cache
def _densities(threads: int) -> dict[Work, float]:
    path = cache_folder() / f"crossover-{_machine(threads)}.json"
    if (kept := _read(path)) is not None:
        return kept
    found = measure()
    if (kept := _read(path)) is not None:  # another process was first: all take the same paths
        return kept
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(json.dumps(found)))
    except OSError:  # nowhere to keep it: measured again by the next process
        pass
    return found


def _read(path: Path) -> dict[Work, float] | None:
    try:
        kept = json.loads(path.read_text())
        return {work: float(kept[work]) for work in ("decode", "step")}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _machine(threads: int) -> str:
    """Return a name of what the answer depends on: processor, number of threads, versions."""
    import numba

    parts = [processor(), os.cpu_count(), threads, torch.__version__, numba.__version__, *_DENSITIES]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def processor() -> str:
    """Return the processor's name with family and model: those of several generations call themselves "AMD EPYC"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = [known.get("model name", platform.machine())]
    return ", ".join(parts + [f"{name.split()[-1]} {known[name]}" for name in ("cpu family", "model") if name in known])


@torch.no_grad()
def measure() -> dict[Work, float]:
    """Time lists of two densities and the matmuls in turns; return where a line through the first meets the second."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(_TOKENS, _D_IN, generator=generator) for _ in range(2))
    W_dec = torch.randn(_D_SAE, _D_IN, generator=generator)
    chances = torch.rand(_TOKENS, _D_SAE, generator=generator)
    codes = {density: (chances < density).float() for density in _DENSITIES}

    def listed(acts: Tensor, work: Work) -> None:
        active = sparse.active_features(acts, 1.0)
        assert active is not None
        sparse.decode(active, W_dec)
        if work == "step":
            sparse.step_gradients(active, x, W_dec, grad, None)

    def dense(work: Work) -> None:
        acts = codes[_DENSITIES[0]]
        torch.mm(acts, W_dec)
        if work == "step":
            along = torch.mm(grad, W_dec.T)
            along *= acts > 0
            torch.mm(x.T, along)
            torch.mm(acts.T, grad)

    def crossing(work: Work) -> float:
        rounds = [
            (_time(dense, work), *(_time(listed, acts, work) for acts in codes.values())) for _ in range(_ROUNDS + 1)
        ]
        # The first one compiles. Of the others the fastest: what disturbs a measurement makes it slower.
        of_dense, low, high = (min(times) for times in zip(*rounds[1:], strict=True))
        slope = (high - low) / (_DENSITIES[1] - _DENSITIES[0])
        density = _DENSITIES[0] + (of_dense - low) / slope if slope > 0 else _MOST
        return round(min(max(_CAUTION * density, _LEAST), _MOST), 3)

    return {"decode": crossing("decode"), "step": crossing("step")}


def _time(work: Callable[..., object], *args: object) -> float:
    start = perf_counter()
    work(*args)
    return perf_counter() - start
