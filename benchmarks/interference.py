"""How far the premise of the norm-relative threshold holds: what an inactive feature's pre-activation looks like.

    python benchmarks/interference.py [--tokens 16384] [--output docs/results] [--image docs/images/interference.png]

The rule keeps a_i ||d_i|| > c ||x|| sqrt(2 ln n / d_in), on the premise that the pre-activation of a feature that is
not there is about N(0, ||x||^2 / d_in). Here the features are known, and the encoder is the true dictionary itself, so
that what is seen is the rule and not how well an SAE was trained. Writes interference.json, interference.md and the
picture.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sae_lens.synthetic import SyntheticModel
from torch import Tensor

from sae_lens_afa.experiments.training import OwnRandom
from sae_lens_afa.experiments.worlds import WORLDS, World
from sae_lens_afa.files import write_whole
from sae_lens_afa.functional import coherence, universal_threshold

# Beside the benchmark's worlds those in which the premise should break: few dimensions, and hardly more features
# than dimensions.
CASES = {
    **{name: WORLDS[name] for name in ("zipf-2x", "zipf-4x", "zipf-8x", "correlated", "hierarchical")},
    "8 dimensions": World("quasi-orthogonal, Zipfian, 8 dimensions", 8, 32),
    "no superposition": World("as zipf-4x, as many features as dimensions", 128, 128),
}
HEADINGS = {
    "true_l0": "features there",
    "coherence_max": "largest overlap",
    "spread": "interference, std (premise: 1)",
    "welch": "sqrt((n - d) / (n - 1))",
    "found_l0": "features kept",
    "false_per_token": "of these not there",
    "missed": "share missed",
}


@dataclass(frozen=True)
class Interference:
    """Of one world: figures per token that has any feature, and the histograms of pre-activations.

    Attributes:
        true_l0: Features that are there.
        coherence_max: Largest overlap of two features.
        spread: Root mean square of an inactive feature's pre-activation, in ||x|| / sqrt(d_in).
        welch: The same for n directions spread as evenly as d dimensions allow (Welch's bound on their overlaps).
        false_per_token: Features above the threshold that are not there.
        missed: Share of the features that are there which stay below it.
        found_l0: Features above it.
        threshold: sqrt(2 ln n), in the same units.
        inactive, active: Densities over `EDGES`.
    """

    true_l0: float
    coherence_max: float
    spread: float
    welch: float
    false_per_token: float
    missed: float
    found_l0: float
    threshold: float
    inactive: list[float]
    active: list[float]


EDGES = np.linspace(-5.0, 12.0, 171)


def measure(world: World, tokens: int) -> Interference:
    """The rule with the true dictionary as encoder and decoder."""
    model: SyntheticModel = world.make()
    features: Tensor = model.feature_dict.feature_vectors.detach()
    directions = torch.nn.functional.normalize(features, dim=-1)
    with OwnRandom("interference", 0)():
        codes = model.activation_generator.sample(tokens)
        codes = codes.to_dense() if codes.is_sparse else codes
        x = model.feature_dict(codes).detach()
    present, norms = codes > 0, x.norm(dim=-1)
    kept_tokens = norms > 0  # a token without any feature says nothing
    x, present, norms = x[kept_tokens], present[kept_tokens], norms[kept_tokens]
    scaled = x @ directions.T / norms[:, None]
    above = scaled > universal_threshold(torch.ones(()), world.hidden_dim, world.num_features)
    units = scaled * math.sqrt(world.hidden_dim)
    return Interference(
        true_l0=present.sum(-1).double().mean().item(),
        coherence_max=coherence(features).max,
        spread=units[~present].double().square().mean().sqrt().item(),
        welch=math.sqrt(max(0, world.num_features - world.hidden_dim) / (world.num_features - 1)),
        false_per_token=(above & ~present).sum(-1).double().mean().item(),
        missed=(~above & present).sum().item() / int(present.sum()),
        found_l0=above.sum(-1).double().mean().item(),
        threshold=math.sqrt(2 * math.log(world.num_features)),
        inactive=np.histogram(units[~present].numpy(), EDGES, density=True)[0].tolist(),
        active=np.histogram(units[present].numpy(), EDGES, density=True)[0].tolist(),
    )


def table(results: dict[str, Interference]) -> str:
    """A row for each world."""
    lines = ["| data | " + " | ".join(HEADINGS.values()) + " |", "|---" * (len(HEADINGS) + 1) + "|"]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{getattr(result, key):.3g}" for key in HEADINGS) + " |")
    return "\n".join(lines)


def draw(results: dict[str, Interference], path: Path) -> None:
    """A panel for each world: inactive features against the normal law, active ones, and the threshold."""
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.3 * rows), layout="constrained")
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    for i, (name, result) in enumerate(results.items()):
        axis = figure.add_subplot(rows, columns, i + 1)
        axis.fill_between(centres, result.inactive, step="mid", color="#3b6ea5", alpha=0.35, linewidth=0)
        axis.plot(centres, np.exp(-(centres**2) / 2) / math.sqrt(2 * math.pi), color="#3b6ea5", linewidth=1)
        axis.fill_between(centres, result.active, step="mid", color="#c8553d", alpha=0.45, linewidth=0)
        axis.axvline(result.threshold, color="black", linewidth=0.8, linestyle="--")
        axis.set(title=name, yscale="log", ylim=(1e-5, 10), xlim=(EDGES[0], EDGES[-1]))
        axis.tick_params(labelsize=7)
        axis.title.set_fontsize(9)
    legend = figure.add_subplot(rows, columns, len(results) + 1)
    legend.axis("off")
    legend.fill_between([], [], color="#3b6ea5", alpha=0.35, label="features that are not there")
    legend.plot([], [], color="#3b6ea5", linewidth=1, label="premise: N(0, 1)")
    legend.fill_between([], [], color="#c8553d", alpha=0.45, label="features that are there")
    legend.plot([], [], color="black", linewidth=0.8, linestyle="--", label="threshold, sqrt(2 ln n)")
    legend.legend(loc="center", fontsize=8, frameon=False)
    figure.supxlabel("pre-activation, in ||x|| / sqrt(d_in)", fontsize=9)
    figure.supylabel("density", fontsize=9)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=150))


def main() -> None:
    """Measure all worlds, and write figures, table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--image", type=Path, default=Path("docs/images/interference.png"))
    args = parser.parse_args()
    results = {name: measure(world, args.tokens) for name, world in CASES.items()}
    figures = {
        name: {k: v for k, v in asdict(r).items() if k not in ("inactive", "active")} for name, r in results.items()
    }
    for folder in (args.output, args.image.parent):
        folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"tokens": args.tokens, "worlds": figures}, indent=1) + "\n"
    write_whole(args.output / "interference.json", lambda partial: partial.write_text(text))
    report = (
        "# What an inactive feature's pre-activation looks like\n\n"
        f"`python benchmarks/interference.py`: {args.tokens:,} samples of each world, per sample that has any feature;"
        " the true dictionary is the encoder, threshold scale 1.\n\n"
        f"{table(results)}\n"
    )
    write_whole(args.output / "interference.md", lambda partial: partial.write_text(report))
    draw(results, args.image)
    print(table(results))


if __name__ == "__main__":
    main()
