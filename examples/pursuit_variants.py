"""Would afa_pursuit find more if it were another one? Four variants beside it, on data whose features are known.

    python examples/pursuit_variants.py --output runs/pursuit-variants

- c from 2, c from 0.8: the threshold's scale begins there and comes to its own value over a fifth of the run.
- rows from tokens: the dictionary begins with directions of tokens in place of random ones.
- token's floor: the floor is a share of the token's own norm, and not of the data's typical norm.

It shows, too, how a sweep compares architectures of one's own: they are registered with SAELens, and no more.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens import register_sae_class, register_sae_training_class
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

import sae_lens_afa as afa
from sae_lens_afa.experiments import Arm, ground_truth_sweep, run_sweep
from sae_lens_afa.selection import PursuitRule


class ScaledThreshold(afa.AFAPursuitTrainingSAE):
    """A threshold that comes to its scale from `first` times it."""

    first: float

    def rule_at(self, step_input: TrainStepInput) -> PursuitRule:
        """Return the rule of this step."""
        # The dictionary grows over two fifths of the run; this takes half as long.
        left = max(0.0, 1 - 2 * step_input.n_training_steps / max(1, self.cfg.growth_steps or 0))
        return self._rule(self.cfg.threshold_scale * (1 + (self.first - 1) * left))


class FromTwo(ScaledThreshold):
    """Few features at first."""

    first = 2.0


class FromLess(ScaledThreshold):
    """More features at first."""

    first = 0.8


class RowsFromTokens(afa.AFAPursuitTrainingSAE):
    """A dictionary that begins with tokens."""

    def start_from(self, rows: Tensor, *, is_new: bool) -> None:
        """Set what depends on the data."""
        super().start_from(rows, is_new=is_new)
        if is_new:
            born = (self.W_dec != 0).any(-1).nonzero().squeeze(-1)[: len(rows)]
            tokens = rows[torch.randperm(len(rows), device=rows.device)[: len(born)]]
            self.W_dec[born] = torch.nn.functional.normalize(tokens - self.b_dec, dim=-1)


class TokensFloor(afa.AFAPursuitTrainingSAE):
    """A floor by the token's own norm."""

    def start_from(self, rows: Tensor, *, is_new: bool) -> None:
        """Set what depends on the data."""
        super().start_from(rows, is_new=is_new)
        self.typical_norm.zero_()


VARIANTS: dict[str, type[afa.AFAPursuitTrainingSAE]] = {
    "c from 2": FromTwo,
    "c from 0.8": FromLess,
    "rows from tokens": RowsFromTokens,
    "token's floor": TokensFloor,
}


def register(name: str, training_class: type[afa.AFAPursuitTrainingSAE]) -> None:
    """Register a variant with SAELens under its name."""

    @dataclass
    class Config(afa.AFAPursuitSAEConfig):
        @classmethod
        def architecture(cls) -> str:
            return name

    @dataclass
    class TrainingConfig(afa.AFAPursuitTrainingSAEConfig):
        @classmethod
        def architecture(cls) -> str:
            return name

    register_sae_class(name, afa.AFAPursuitSAE, Config)
    register_sae_training_class(name, training_class, TrainingConfig)


def main() -> None:
    """Train all of them and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--world", action="append", help="default: hierarchical and zipf-4x")
    parser.add_argument("--seed", action="append", type=int, help="default: 0, 1 and 2")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--output", type=Path, default=Path("runs/pursuit-variants"))
    args = parser.parse_args()
    for name, training_class in VARIANTS.items():
        register(name, training_class)
    arms = [Arm(name, "threshold_scale", (1.0,)) for name in ("afa_pursuit", *VARIANTS)]
    worlds, seeds = args.world or ["hierarchical", "zipf-4x"], args.seed or [0, 1, 2]
    sweep = ground_truth_sweep(args.preset, worlds=worlds, arms=arms, seeds=seeds, lr=args.lr)
    command = shlex.join(["python", "examples/pursuit_variants.py", *sys.argv[1:]])
    print(run_sweep(sweep, args.output, command=command))


if __name__ == "__main__":
    main()
