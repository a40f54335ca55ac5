"""Draw what a run logs to wandb, of a run that is logged offline: no account, no network.

    python examples/wandb_offline.py --output docs/images/wandb.png

Trains a top_afa SAE on the bundled model for a moment, with SAELens' runner and this package's evaluator.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import matplotlib.pyplot as plt
import wandb
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig

import sae_lens_afa as afa

SHOWN = (
    "losses/mse_loss", "losses/afa_loss", "metrics/explained_variance", "metrics/l0", "metrics/afa_norm_ratio",
    "metrics/afa_frac_over_activated", "afa/epsilon_lbo_mean", "afa/l0_q95",
)  # fmt: skip
BATCH = 1024


def main() -> None:
    """Train, draw the curves, and list all that was logged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("wandb.png"))
    args = parser.parse_args()
    output = args.output.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where wandb writes its own files
        logged = train(args.steps)
        os.chdir(output.parent)

    figure, axes = plt.subplots(2, 4, figsize=(13, 5.2), layout="constrained")
    for axis, name in zip(axes.flat, SHOWN, strict=True):
        steps, values = zip(*logged[name], strict=True)
        axis.plot(steps, values, ".-", color="#0072B2")
        axis.set_title(name, fontsize=10)
        axis.set_ylim(bottom=0)
    figure.supxlabel("step")
    figure.savefig(output, dpi=110)
    print("\n".join(sorted(logged)))


def train(steps: int) -> dict[str, list[tuple[int, Any]]]:
    """Return by name all that a run logs, each value with its step."""
    model = afa.demo.load_model()
    text = Dataset.from_dict({"text": afa.demo.load_text().train})
    cfg = LanguageModelSAERunnerConfig(
        sae=afa.TopAFATrainingSAEConfig(d_in=192, d_sae=1024),
        model_name="kjv_gpt2",
        hook_name="blocks.2.hook_resid_pre",
        dataset_path="King James Bible",
        is_dataset_tokenized=False,
        streaming=False,
        context_size=64,
        training_tokens=steps * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=32,
        n_batches_in_buffer=16,
        lr=2e-3,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=5),
        output_path="sae",
        checkpoint_path="checkpoints",
        verbose=False,
    )
    runner = LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=text)
    runner.evaluator = afa.AFAEvaluator(runner.evaluator)
    logged: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    log = wandb.Run.log

    def kept(run: Any, data: dict[str, Any], step: int | None = None, **options: Any) -> None:
        for name, value in data.items():
            logged[name].append((step or 0, value))
        log(run, data, step=step, **options)

    wandb.Run.log = kept
    try:
        runner.run()
    finally:
        wandb.Run.log = log
    return logged


if __name__ == "__main__":
    main()
