"""Which back end of the selection runs where; the compiled ones are imported when they are first asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

Select = Callable[[Tensor, Tensor, Tensor | None], Tensor]
BACKEND_VARIABLE = "SAE_LENS_AFA_BACKEND"


class _Backend(NamedTuple):
    """A function of rows [rows, d_sae], targets [rows] and decoder norms, and the device types it is for."""

    module: str
    function: str
    devices: tuple[str, ...]  # none: every device


# Fastest first.
_BACKENDS = {
    "numba": _Backend("_numba", "select_compiled", ("cpu",)),
    "triton": _Backend("_triton", "select_on_gpu", ("cuda",)),
    "torch": _Backend("_rows", "select_rows", ()),
}


def available_backends() -> list[str]:
    """Names of the back ends that can run here, fastest first; "auto" takes the first that is for the device."""
    return [name for name, backend in _BACKENDS.items() if _has_device(backend) and _function(name) is not None]


def backend_for(device: torch.device, requested: str = "auto") -> str:
    """Name of the back end for `device`: the one asked for, or with "auto" the environment's or the fastest.

    Raises:
        ValueError: the one asked for, here or in the environment, is unknown, not installed, or for another device.
    """
    source, name = "backend", requested
    if requested == "auto":
        source, name = BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE, "auto")
    if name == "auto":
        fitting = (n for n, b in _BACKENDS.items() if not b.devices or device.type in b.devices)
        return next(n for n in fitting if _function(n) is not None)
    if name not in available_backends():
        raise ValueError(f"{source} must be 'auto' or one of {available_backends()}, got {name!r}.")
    if not _is_for(_BACKENDS[name], device.type):
        raise ValueError(
            f"{source}={name!r} runs on {' and '.join(_BACKENDS[name].devices)}, but acts are on {device.type}:"
            " use 'auto' or 'torch'."
        )
    return name


def selector(name: str) -> Select:
    """The function of an available back end."""
    function = _function(name)
    assert function is not None
    return function


@cache
def _function(name: str) -> Select | None:
    """The back end's function, or None where what it is compiled with cannot be imported."""
    backend = _BACKENDS[name]
    try:
        return getattr(import_module(f"{__package__}.{backend.module}"), backend.function)
    except ImportError:
        return None


def _has_device(backend: _Backend) -> bool:
    return not backend.devices or any(_is_here(device) for device in backend.devices)


def _is_for(backend: _Backend, device_type: str) -> bool:
    if "cuda" in backend.devices and _interpreted():
        return device_type in ("cpu", "cuda")
    return not backend.devices or device_type in backend.devices


def _is_here(device_type: str) -> bool:
    return device_type == "cpu" or torch.cuda.is_available() or _interpreted()


def _interpreted() -> bool:
    """Whether Triton was told to run its kernels on the CPU, in Python: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
