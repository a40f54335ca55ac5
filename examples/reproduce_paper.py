"""The AFA paper's comparison on GPT-2 small (arXiv 2503.24277, section 5), to be changed to your own model and grids.

top-AFA over its coefficients against TopK and BatchTopK over their k, at resid_pre of layers 6, 7 and 8, each SAE on
20,001 batches of 4,096 OpenWebText tokens, with three seeds. All SAEs of a group share each forward pass of the model.

    python examples/reproduce_paper.py --device cuda           # 207 SAEs; needs the network
    python examples/reproduce_paper.py --preset demo           # the bundled model and text: minutes, no network

Stop it at will: the same command goes on. The report has the published runs beside ours.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sae_lens_afa.experiments import Arm, paper_sweep, run_sweep

# Put beside the paper's grids by --with-jumprelu; any architecture that SAELens knows will do.
EXTRA = [Arm("jumprelu", "l0_coefficient", (1.0, 3.0))]


def main() -> None:
    """Run what is not finished, and print the best run of each grid and where the report is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("paper", "demo", "tiny"), default="paper")
    parser.add_argument("--output", type=Path, default=Path("runs/paper"))
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="default: the paper's, 6 7 8")
    parser.add_argument("--steps", type=int, help="fewer than 20,001: schedules shrink with them")
    parser.add_argument("--with-jumprelu", action="store_true", help="an architecture that the paper leaves out")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    sweep = paper_sweep(args.preset, layers=args.layers, steps=args.steps, device=args.device)
    if args.with_jumprelu:
        sweep = replace(sweep, arms=(*sweep.arms, *EXTRA))
    result = run_sweep(sweep, args.output)
    assert result is not None  # it runs to its end
    print(f"\n{result}\n\nwritten:")
    print("\n".join(f"  {path}" for path in result.files))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
