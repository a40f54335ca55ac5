"""Everything that was tried to make `afa_threshold` train well, one thing at a time, and what it did.

    python -m benchmarks.threshold_variants [--output docs/results/threshold] [--world NAME ...]

A ground-truth sweep (see `sae-lens-afa sweep ground-truth --preset full`) whose arms differ from the first one by one
thing each. What is a setting of the architecture is set; what did not earn its place in it is in `benchmarks.variants`.
The sweep goes on where it was stopped. With `--from-truth` those arms are run that start from the true dictionary of a
world, in place of all others: what training keeps of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D
from typing_extensions import override

from benchmarks.variants import register
from sae_lens_afa.plots.styles import styles_of
from sae_lens_afa.experiments import Arm, ground_truth_sweep
from sae_lens_afa.experiments.command import run_command
from sae_lens_afa.experiments.ground_truth import GroundTruthSweep
from sae_lens_afa.experiments.statistics import summarise

WORLDS = ("zipf-4x", "correlated", "hierarchical")
PICTURE = "variants.png"
# Of the first arm: the architecture's defaults but for c and the normalisation, which are among what was tried.
START = {"threshold_warm_up_steps": 1000, "normalize_activations": "none"}


def arms() -> tuple[Arm, ...]:
    """What is compared: afa_threshold over c, then each thing that was tried at c = 0.85, then other architectures."""

    def tried(label: str, architecture: str = "afa_threshold", c: tuple[float, ...] = (0.85,), **settings: Any) -> Arm:
        return Arm(architecture, "threshold_scale", c, {**START, **settings}, label)

    def variant(label: str, **settings: Any) -> Arm:
        return tried(label, "afa_threshold_variant", **settings)

    grid = (0.7, 0.85, 1.0)
    at_once, layer_norm = {"threshold_start": 1}, {"normalize_activations": "layer_norm"}
    return (
        tried("afa_threshold", c=(0.6, 0.7, 0.8, 0.85, 0.9, 1, 1.15)),
        tried("never reseeded", reseed_steps=0),
        tried("never reseeded, loss of TopK", reseed_steps=0, aux_loss_coefficient=1),
        variant("never reseeded, reference's loss", reseed_steps=0, reference_aux=0.03125),
        tried("reseeded, loss of TopK", aux_loss_coefficient=1),
        tried("reseeded every 25", reseed_steps=25),
        tried("reseeded every 400", reseed_steps=400),
        tried("no warm-up", c=grid, **at_once),
        tried("warm-up from 0", threshold_start=0),
        tried("warm-up from 0.25", threshold_start=0.25),
        tried("warm-up from 0.75", threshold_start=0.75),
        tried("warm-up over 250", threshold_warm_up_steps=250),
        tried("warm-up to the end", threshold_warm_up_steps=2500),
        variant("soft threshold until 1000", soft_threshold=1000, **at_once),
        variant("soft threshold to the end", soft_threshold=2500, **at_once),
        variant("soft mask 0.1", soft_mask=0.1),
        variant("straight-through 0.1", straight_through=0.1),
        variant("straight-through 0.5", straight_through=0.5),
        variant("measured coherence", measured_coherence=True),
        tried("encoder bias", "afa_threshold_biased"),
        tried("decoder rows free", unit_norm_decoder=False),
        tried("decoder rows start at 0.1, free", unit_norm_decoder=False, decoder_init_norm=0.1),
        tried("b_dec from 0", b_dec_init="zeros"),
        variant("rows from data", rows_from_data=True),
        tried("layer_norm", c=grid, **layer_norm),
        tried("layer_norm, no warm-up", c=grid, **at_once, **layer_norm),
        tried("layer_norm, warm-up from 0.75", threshold_start=0.75, **layer_norm),
        tried("layer_norm, no warm-up, rows free", unit_norm_decoder=False, **at_once, **layer_norm),
        tried("layer_norm, no warm-up, every 25", reseed_steps=25, **at_once, **layer_norm),
        Arm("topk", "k", (3, 6)),
        Arm("topk_reseeded", "k", (3, 6)),
        Arm("batchtopk", "k", (3, 6)),
        Arm("batchtopk_reseeded", "k", (3, 6)),
        Arm("jumprelu", "l0_coefficient", (0.1,)),
        Arm("jumprelu_reseeded", "l0_coefficient", (0.1,)),
        # Standardised samples have 40 times the squared norm, and so has the error that the penalty is set against.
        Arm("jumprelu", "l0_coefficient", (1, 3, 10), layer_norm, "jumprelu, layer_norm"),
    )


def arms_from_truth(world: str) -> tuple[Arm, ...]:
    """Training from the true dictionary of a world."""
    settings = {**START, "rows_from_world": world, "threshold_start": 1}
    return (Arm("afa_threshold_variant", "threshold_scale", (0.5, 0.7, 0.85, 1.0), settings, "from the truth"),)


class Tried(GroundTruthSweep):
    """A ground-truth sweep with a picture that has a row for each arm: curves against L0 would hide each other."""

    plots = ()

    @override
    def sections(self) -> list[str]:
        return [f"MCC (filled) and F1 (open), mean ± standard deviation over seeds:\n\n![{PICTURE}]({PICTURE})"]


def draw(path: Path, rows: Sequence[Mapping[str, Any]], worlds: Sequence[str]) -> None:
    """MCC and F1 of each arm in its architecture's colour, a panel for each world."""
    summaries = summarise(rows)
    names = list(dict.fromkeys((s.label, s.setting) for s in summaries))
    colors = {row["label"]: _color(row["architecture"]) for row in rows}
    scores = {"mcc": ("MCC", True), "f1": ("F1", False)}
    figure, axes = plt.subplots(
        1, len(worlds), figsize=(3.2 + 3 * len(worlds), 1.4 + 0.19 * len(names)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, world in zip(axes[0], worlds, strict=True):
        for summary in (s for s in summaries if s.stream == world):
            at, color = len(names) - names.index((summary.label, summary.setting)), colors[summary.label]
            for score, (_, filled) in scores.items():
                mean, spread = summary.mean(score), summary.spread(score)
                if mean is not None:
                    axis.errorbar(mean, at, xerr=spread or 0, ecolor=color, **_dot(color, filled=filled))
        axis.set(title=world, xlim=(0, 1), xlabel="MCC, F1")
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    labels = [f"{label}, {setting}".replace("threshold_scale", "c") for label, setting in names]
    axes[0][0].set_yticks(range(len(names), 0, -1), labels, fontsize=7)
    axes[0][0].set_ylim(0.3, len(names) + 0.7)
    dots = [Line2D([], [], label=label, **_dot("#444444", filled=filled)) for label, filled in scores.values()]
    figure.legend(
        handles=dots, loc="outside upper center", ncols=2, frameon=False,
        title="mean ± standard deviation over seeds, in the colour of the architecture",
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _color(architecture: str) -> str:
    """That of the architecture that a variant is of."""
    base = architecture.removesuffix("_reseeded").removesuffix("_variant").removesuffix("_biased")
    return styles_of([base])[base].color


def _dot(color: str, *, filled: bool) -> dict[str, Any]:
    return {
        "marker": "o", "linestyle": "", "markersize": 4.5,
        "markerfacecolor": color if filled else "white", "markeredgecolor": color,
    }  # fmt: skip


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/threshold"))
    parser.add_argument("--world", action="append", help=f"default: {', '.join(WORLDS)}")
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--from-truth", action="store_true")
    given = parser.parse_args()
    register()
    worlds = given.world or WORLDS
    if given.from_truth and len(worlds) != 1:
        parser.error("--from-truth needs one --world")
    compared = arms_from_truth(worlds[0]) if given.from_truth else arms()
    plain = ground_truth_sweep("full", worlds=worlds, arms=compared, seeds=given.seed or (), steps=given.steps)
    sweep = Tried(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    truth = f" --world {worlds[0]} --from-truth" if given.from_truth else ""
    print(run_command(sweep, given.output, f"python -m benchmarks.threshold_variants{truth}"))
    draw(given.output / PICTURE, pd.read_csv(given.output / "runs.csv").to_dict("records"), worlds)


if __name__ == "__main__":
    main()
