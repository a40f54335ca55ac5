"""Draw how a pursuit takes a token apart: what stands out at each stage, and what is left over.

    python examples/pursuit_by_stages.py --output docs/images/pursuit_by_stages.png

The token is of a synthetic world whose features are known, the dictionary is the true one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from sae_lens_afa.experiments.worlds import WORLDS
from sae_lens_afa.functional import universal_ratio
from sae_lens_afa.selection import PursuitRule, pursue

SHOWN = 40
ACTIVE, OTHER, CODE = "#D55E00", "#999999", "#0072B2"


def main() -> None:
    """Draw the token with most stages among some that have features enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="hierarchical", choices=sorted(WORLDS))
    parser.add_argument("--features", type=int, default=9, help="features that the token has")
    parser.add_argument("--output", type=Path, default=Path("pursuit_by_stages.png"))
    args = parser.parse_args()

    torch.manual_seed(0)
    model = WORLDS[args.world].make()
    W_dec = torch.nn.functional.normalize(model.feature_dict.feature_vectors.detach(), dim=-1)
    x, truth = model.sample_with_features(4096)
    ratio = universal_ratio(W_dec.shape[1], len(W_dec))
    fitting = [t for t in range(len(x)) if int((truth[t] > 0).sum()) == args.features]
    states = max((stages_of(x[t : t + 1], W_dec, ratio) for t in fitting), key=len)
    token = next(t for t in fitting if torch.equal(x[t], states[0][1]))

    figure, axes = plt.subplots(1, len(states), figsize=(3.1 * len(states), 3), sharey=True, layout="constrained")
    for stage, ((code, rest), axis) in enumerate(zip(states, axes, strict=True)):
        along = (W_dec @ rest).masked_fill(code > 0, -torch.inf)
        order = along.argsort(descending=True)[:SHOWN]
        colors = [ACTIVE if truth[token, i] > 0 else OTHER for i in order]
        axis.bar(range(len(order)), along[order].clamp(min=0), color=colors, width=1.0)
        axis.axhline(ratio * rest.norm(), color="black", linestyle="--", linewidth=1)
        right = int(((code > 0) & (truth[token] > 0)).sum())
        axis.set_title(f"stages: {stage}, found: {right} of {args.features}", fontsize=9)
        axis.set_xlabel(f"inactive features, ‖r‖ = {rest.norm():.2f}")
    axes[0].set_ylabel("⟨r, d_i⟩")
    bars = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (ACTIVE, OTHER)]
    line = plt.Line2D([], [], color="black", linestyle="--")
    axes[-1].legend([*bars, line], ["in the token", "not in it", "threshold"], frameon=False, fontsize=8)
    figure.savefig(args.output, dpi=150)
    print(f"{args.output}: {len(states) - 1} stages")


def stages_of(x: torch.Tensor, W_dec: torch.Tensor, ratio: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return code and residual of a token [1, d_in] before the first stage and after each."""
    states = [(torch.zeros(len(W_dec)), x[0])]
    for stages in range(1, 20):
        rule = PursuitRule(ratio, floor=0.1, weak=0.9, max_stages=stages)
        code = pursue(x, W_dec, x @ W_dec.T, rule, torch.tensor(0.0))[0]
        if torch.equal(code, states[-1][0]):
            break
        states.append((code, x[0] - code @ W_dec))
    return states


if __name__ == "__main__":
    main()
