"""The grids that presets compare, and a preset with some of its fields changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from sae_lens_afa.architectures import ARCHITECTURES, Grid
from sae_lens_afa.experiments.arms import Arm
from sae_lens_afa.experiments.steering import TARGET_L0
from sae_lens_afa.experiments.sweep import Sweep

S = TypeVar("S", bound=Sweep)
N = TypeVar("N", int, float)
Several = N | Sequence[N] | None

# SAELens' own architectures; those of this package are in `architectures.py`. What is steered starts low.
_SAELENS_GRIDS: Mapping[str, Sequence[tuple[str, Grid]]] = {
    "ground-truth": (
        ("standard", Grid("l1_coefficient", (0.1,), (0.03, 0.1, 0.3, 1.0))),
        ("standard", Grid(TARGET_L0, (3,), (2.5, 3, 3.5), {"l1_coefficient": 0.1}, label="standard, steered")),
        ("topk", Grid("k", (3, 6), (2, 3, 4, 6, 8))),
        ("batchtopk", Grid("k", (3,), (3, 4, 6, 8))),
        ("matryoshka_batchtopk", Grid("k", (3,), (3, 4, 6, 8))),
        ("jumprelu", Grid("l0_coefficient", (0.1,), (0.01, 0.03, 0.1, 0.3, 1.0))),
        ("jumprelu", Grid(TARGET_L0, (3,), (2.5, 3, 3.5), {"l0_coefficient": 0.01}, label="jumprelu, steered")),
        ("matching_pursuit", Grid("max_iterations", (3,), (2, 3, 4, 6))),
    ),
    "activations": (
        ("standard", Grid("l1_coefficient", (1.0, 3.0), (0.3, 1.0, 3.0, 10.0))),
        ("topk", Grid("k", (8, 32), (4, 8, 16, 32, 64))),
        ("batchtopk", Grid("k", (8, 32), (4, 8, 16, 32, 64))),
        ("matryoshka_batchtopk", Grid("k", (8, 32), (4, 8, 16, 32, 64))),
        ("jumprelu", Grid("l0_coefficient", (1.0,), (0.3, 1.0, 3.0, 10.0))),
        ("jumprelu", Grid(TARGET_L0, (16,), (8, 16, 32, 64), {"l0_coefficient": 0.01}, label="jumprelu, steered")),
        ("matching_pursuit", Grid("max_iterations", (8,), (4, 8, 16, 32))),
    ),
}


def preset_arms(sweep: str, size: Literal["quick", "full"], phase: int, steps: int) -> tuple[Arm, ...]:
    """Return the arms of a preset: those of SAELens, then those of this package.

    Args:
        sweep: "ground-truth" or "activations".
        size: The preset whose values are taken.
        phase: The step at which Feature Choice, Mutual Choice until then, fits its Zipf law, and at which a threshold
            has risen.
        steps: Of the preset's training.
    """
    grids = list(_SAELENS_GRIDS[sweep])
    grids += [(entry.name, grid) for entry in ARCHITECTURES for grid in entry.grids.get(sweep, ())]
    return tuple(
        Arm(
            name, grid.hyperparameter, grid.quick if size == "quick" else grid.full,
            {**grid.settings, **({grid.phase: phase} if grid.phase else {})}, grid.label, at_steps=steps,
        )
        for name, grid in grids
    )  # fmt: skip


def changed(
    presets: Mapping[str, S],
    preset: str,
    steps: Several[int] = None,
    lr: Several[float] = None,
    batch_size: int | None = None,
    **changes: Any,
) -> S:
    """Return a preset with other fields.

    Args:
        presets: Sweeps by name.
        preset: The name of one.
        steps: Training steps, one number or several; all that the preset counts in steps changes in proportion. None
            leaves them.
        lr: Learning rate, one or several. None leaves the preset's.
        batch_size: Samples of each training step. None leaves the preset's.
        changes: Fields; None and () leave the preset's value.

    Raises:
        ValueError: an unknown preset, or a value that the sweep refuses.
    """
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(presets)}.")
    changes = {**changes, "budgets": _several(steps), "rates": _several(lr)}
    if batch_size is not None:
        changes["training"] = replace(presets[preset].training, batch_size=batch_size)
    return replace(
        presets[preset], **{name: value for name, value in changes.items() if value is not None and value != ()}
    )


def _several(values: Several[Any]) -> tuple[Any, ...]:
    if values is None:
        return ()
    return tuple(dict.fromkeys(values)) if isinstance(values, Sequence) else (values,)
