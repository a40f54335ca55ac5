"""The part of a run that SAELens' checkpoints leave out, in a file beside theirs: with it, nothing tells of a stop.

That is the mixing buffer, the place in the text, the random numbers, and the SAE's statistics in their own precision.
The folder stays a checkpoint of SAELens' runner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor

from sae_lens_afa.training.contexts import Place
from sae_lens_afa.training.mixing import Mixed

STREAM_FILENAME = "stream_state.pt"


class StreamState(NamedTuple):
    """Position of a stream.

    Attributes:
        place: Where the next context begins.
        n_rows: Rows before that place, in all epochs; what SAELens' `n_dataset_processed` counts.
        cached_row: The next row of cached activations.
        mixed: What the mixing buffer holds.
        generator: State of the generator that draws the permutations; None: torch's own.
    """

    place: Place
    n_rows: int
    cached_row: int
    mixed: Mixed
    generator: Tensor | None


def save_run_state(folder: Path, stream: StreamState, sae: TrainingSAE[Any]) -> None:
    """Write into a checkpoint's folder what its run goes on with.

    Args:
        folder: The folder of a checkpoint.
        stream: Where the activations are.
        sae: The SAE, of which SAELens keeps statistics in the precision of the weights.
    """
    state = {
        "place": tuple(stream.place),
        "n_rows": stream.n_rows,
        "cached_row": stream.cached_row,
        "mixed": tuple(stream.mixed.copied()),
        "generator": stream.generator,
        "random": torch.get_rng_state(),
        "random_of_device": torch.cuda.get_rng_state(sae.device) if sae.device.type == "cuda" else None,
        "statistics": dict(sae.named_buffers()),
    }
    torch.save(state, folder / STREAM_FILENAME)


def load_stream(folder: Path) -> StreamState | None:
    """Return where the activations of a checkpoint were; None where SAELens' own runner wrote it."""
    state = _read(folder)
    if state is None:
        return None
    mixed = Mixed(*state["mixed"])
    return StreamState(Place(*state["place"]), state["n_rows"], state["cached_row"], mixed, state["generator"])


def restore_randomness_and_statistics(folder: Path, sae: TrainingSAE[Any]) -> bool:
    """Set torch's random numbers and the SAE's statistics to those of a checkpoint; return whether it has them."""
    state = _read(folder)
    if state is None:
        return False
    for name, value in state["statistics"].items():
        module, _, own_name = name.rpartition(".")
        setattr(sae.get_submodule(module), own_name, value.to(sae.device))
    torch.set_rng_state(state["random"])
    if state["random_of_device"] is not None and sae.device.type == "cuda":  # of whatever number
        torch.cuda.set_rng_state(state["random_of_device"], sae.device)
    return True


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the file's content; None if there is no file.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / STREAM_FILENAME
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"resume_from_checkpoint: {path} is damaged; resume from another checkpoint.") from error
