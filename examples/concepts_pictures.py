"""Draw the pictures of docs/concepts.md: norms that match, the bound that their difference gives, top-AFA's choice.

    python examples/concepts_pictures.py --output docs/images

Everything is drawn from random directions and codes, whose features are known.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from sae_lens_afa.functional import epsilon_lbo
from sae_lens_afa.selection import norm_matching_topk

D_IN, D_SAE = 768, 12_288
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def main() -> None:
    """Draw all three into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path())
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, draw in (("afa", draw_afa), ("eps_lbo", draw_eps_lbo), ("top_afa", draw_top_afa)):
        figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
        draw(axes)
        axes.legend(frameon=False, fontsize=8)
        path = args.output / f"concept_{name}.png"
        figure.savefig(path, dpi=130)
        plt.close(figure)
        print(path)


def draw_afa(axes: Any) -> None:
    """Draw ||f|| against ||z|| of tokens whose features are known, for three numbers of active features."""
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=-1)
    for l0, color in ((4, BLUE), (32, GREEN), (256, ORANGE)):
        f = torch.zeros(300, D_SAE)
        active = torch.rand(len(f), D_SAE).topk(l0).indices
        f.scatter_(1, active, torch.rand(len(f), l0) + 0.5)
        f *= (1 + 3 * torch.rand(len(f), 1)) / l0**0.5
        z = f @ W_dec
        axes.scatter(z.norm(dim=-1), f.norm(dim=-1), s=6, color=color, alpha=0.6, label=f"{l0} features a token")
    axes.axline((1, 1), slope=1, color="black", linewidth=1, label="‖f‖ = ‖z‖")
    axes.set_xlabel("‖z‖, z = Σ fᵢ dᵢ")
    axes.set_ylabel("‖f‖")


def draw_eps_lbo(axes: Any) -> None:
    """Draw the bound over the ratio of the norms, as a multiple of the mean overlap of random directions."""
    ratio = torch.linspace(0.3, 2.5, 500, dtype=torch.float64)
    bound = epsilon_lbo(torch.ones_like(ratio), ratio, D_SAE)
    is_over = (ratio >= 1).numpy()
    for mask, color, label in ((~is_over, BLUE, "under-activated"), (is_over, ORANGE, "over-activated")):
        axes.plot(ratio.numpy()[mask], bound.numpy()[mask] * (D_SAE - 1), color=color, label=label)
    axes.axvline(1, color=GREY, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 20)
    axes.set_xlabel("‖f‖ / ‖z‖")
    axes.set_ylabel("ε-LBO · (n - 1)")


def draw_top_afa(axes: Any) -> None:
    """Draw the norm of the k largest activations over k for two tokens, and where top-AFA stops."""
    acts = torch.stack([3 * torch.rand(2000) ** 8, 0.5 * torch.rand(2000) ** 2])
    target = torch.tensor([6.0, 4.0])
    selected = norm_matching_topk(acts, target)
    for row, norm, chosen, color in zip(acts, target, selected, (BLUE, ORANGE), strict=True):
        k = int((chosen > 0).sum())
        norms = row.sort(descending=True).values.square().cumsum(0).sqrt()[: 2 * k].numpy()
        axes.plot(np.arange(1, len(norms) + 1), norms, color=color, label=f"‖z‖ = {norm:g}, k = {k}")
        axes.axhline(float(norm), color=color, linestyle="--", linewidth=1)
        axes.plot([k], [norms[k - 1]], "o", color=color)
    axes.set_xlabel("k, features in the order of their activations")
    axes.set_ylabel("norm of the k largest")


if __name__ == "__main__":
    main()
