"""Synthetic worlds on disk: those that take minutes to make, and pools of their samples; made once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_afa.experiments.side_by_side import OwnRandom, own_generator
from sae_lens_afa.experiments.worlds import WORLDS
from sae_lens_afa.files import cache_folder

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModel

_BATCH = 4096


@lru_cache
def made(world: str, device: str = "cpu") -> SyntheticModel:
    """Return the generator of a world of `WORLDS` on a device; what takes minutes to make is made once and kept."""
    from sae_lens.synthetic import SyntheticModel

    if WORLDS[world].kept:
        folder = cache_folder() / _name_of(world)
        if not folder.is_dir():
            _keep(folder, WORLDS[world].make(device).save)
        return SyntheticModel.load_from_disk(folder, device=device)
    model = WORLDS[world].make()
    if device == "cpu":
        return model
    with tempfile.TemporaryDirectory() as folder:  # which is how a generator gets to another device
        model.save(folder)
        return SyntheticModel.load_from_disk(folder, device=device)


def fresh_batches(world: str, batch_size: int, seed: int, device: str = "cpu") -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yield batches without end, each of new samples, that depend on the seed and on the kind of device only."""
    model, draw = made(world, device), OwnRandom("data", seed, device)
    while True:
        with draw():
            batch = model.sample(batch_size)
        yield batch


def pooled_batches(world: str, pool: int, batch_size: int, seed: int) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yield batches without end from `pool` samples that are kept on disk, each epoch in another order.

    The pool is the same for every seed; a seed has its own order. An epoch's last incomplete batch is left out.
    """
    path = cache_folder() / f"{_name_of(world)}-{pool}.npy"
    if not path.is_file():
        _keep(path, lambda partial: _draw(world, pool, partial))
    samples: Any = np.load(path, mmap_mode="r")
    generator = own_generator("data", seed)
    while True:
        order = torch.randperm(pool, generator=generator)
        for rows in order.split(batch_size):
            if len(rows) == batch_size:
                yield torch.from_numpy(samples[rows.numpy()])


def _keep(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder and move it to `path`; where another process was first, its own stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        write(partial)
        try:
            partial.rename(path)
        except OSError:
            if not path.exists():
                raise


def _draw(world: str, pool: int, path: Path) -> None:
    """Write `pool` samples to a .npy file, a few at a time."""
    model, draw = made(world, "cpu"), OwnRandom("pool", 0)
    shape = (pool, WORLDS[world].hidden_dim)
    file: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in tqdm(range(0, pool, _BATCH), desc=f"{world}: {pool:,} samples, kept in {cache_folder()}"):
        with draw():
            batch = model.sample(min(_BATCH, pool - start))
        file[start : start + len(batch)] = batch.numpy()
    file.flush()


def _name_of(world: str) -> str:
    """Return a name that changes with the world's configuration and with the package that makes it."""
    config = json.dumps([WORLDS[world].config().to_dict(), version("sae-lens")], sort_keys=True)
    return f"{world}-{hashlib.sha256(config.encode()).hexdigest()[:12]}"
