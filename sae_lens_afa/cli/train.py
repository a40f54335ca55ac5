"""`sae-lens-afa train`: SAELens' runner, made safe to interrupt, from the command line."""

from __future__ import annotations

import typer

from sae_lens_afa import torchrun

# The flags that messages of the runner name by parameter; its other fields are named as they are spelt here.
FLAGS = {"overwrite": "--overwrite", "device": "--device"}


def train(ctx: typer.Context) -> None:
    """Train an SAE of any architecture (--architecture afa_threshold ...): every flag of SAELens' runner, see --help.

    --config FILE.yaml has what no flag gives; the runner_cfg.json beside an SAE is such a file.

    --resume-from-checkpoint FOLDER on its own continues a run with its own settings.

    Under torchrun, the run is that of all its processes.
    """
    torchrun.show_progress_once()
    from sae_lens_afa.cli.runner_flags import train_with_flags
    from sae_lens_afa.distributed import DistributedSAETrainingRunner
    from sae_lens_afa.runner import InterruptibleTrainingRunner

    runner_class = DistributedSAETrainingRunner if torchrun.started_this() else InterruptibleTrainingRunner
    said = train_with_flags(ctx.args, runner_class)
    if torchrun.rank() == 0:
        print(said)
