"""Comparisons of SAE architectures: grids of settings in, tables, plots and a report out.

    from sae_lens_afa.experiments import ground_truth_sweep, run_sweep
    run_sweep(ground_truth_sweep("quick"), "runs/ground-truth")

Not imported with the package: `sae_lens.synthetic` and the statistics take a while.
"""

from sae_lens_afa.experiments.arms import Arm, Run
from sae_lens_afa.experiments.file_sweep import ActivationsSweep
from sae_lens_afa.experiments.ground_truth import GroundTruthSweep, ground_truth_sweep
from sae_lens_afa.experiments.paper import PaperSweep, paper_sweep
from sae_lens_afa.experiments.real_activations import activations_sweep
from sae_lens_afa.experiments.running import SweepResult, run_sweep
from sae_lens_afa.experiments.sweep import Sweep

__all__ = [
    "ActivationsSweep",
    "Arm",
    "GroundTruthSweep",
    "PaperSweep",
    "Run",
    "Sweep",
    "SweepResult",
    "activations_sweep",
    "ground_truth_sweep",
    "paper_sweep",
    "run_sweep",
]
