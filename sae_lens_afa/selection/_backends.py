"""The back ends of the selection, and which one runs where."""

from __future__ import annotations

import os
from functools import cache

import torch

BACKEND_VARIABLE = "SAE_LENS_AFA_BACKEND"

# The device each one is for, the fastest first. None: every device.
_DEVICES = {"numba": "cpu", "triton": "cuda", "torch": None}


def available_backends() -> list[str]:
    """Return the names of the back ends that can run here, fastest first; "auto" takes the first for the device.

    Example:
        >>> from sae_lens_afa.selection import available_backends
        >>> available_backends()[-1]
        'torch'
    """
    return [name for name, device in _DEVICES.items() if _is_here(device) and _is_installed(name)]


def backend_for(device: torch.device, requested: str = "auto") -> str:
    """Return the name of the back end for `device`: the one asked for; with "auto" the environment's or the fastest.

    Raises:
        ValueError: the one asked for, here or in the environment, is unknown, not installed, or for another device.
    """
    source, name = "backend", requested
    if requested == "auto":
        source, name = BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE, "auto")
    if name == "auto":
        return next(n for n, of in _DEVICES.items() if of in (None, device.type) and _is_installed(n))
    if name not in available_backends():
        raise ValueError(f"{source} must be 'auto' or one of {available_backends()}, got {name!r}.")
    on_cpu_after_all = name == "triton" and device.type == "cpu" and _is_interpreted()
    if _DEVICES[name] not in (None, device.type) and not on_cpu_after_all:
        raise ValueError(
            f"{source}={name!r} runs on {_DEVICES[name]}, but acts are on {device.type}: use 'auto' or 'torch'."
        )
    return name


@cache
def _is_installed(name: str) -> bool:
    """Tell whether the back end's compiler can be imported; imports it."""
    try:
        if name == "numba":
            import sae_lens_afa.kernels.select  # pyright: ignore[reportUnusedImport]
        elif name == "triton":
            import sae_lens_afa.kernels.select_triton  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


def _is_here(device: str | None) -> bool:
    return device != "cuda" or torch.cuda.is_available() or _is_interpreted()


def _is_interpreted() -> bool:
    """Tell whether Triton runs its kernels on the CPU, in Python: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
