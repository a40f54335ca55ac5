"""`sae-lens-afa demo`: train this package's two SAEs without a k on the bundled model and text, side by side."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.demo import evaluation
from sae_lens_afa.demo.evaluation import DemoResult
from sae_lens_afa.demo.model import MODEL_NAME, load_model
from sae_lens_afa.demo.text import load_text
from sae_lens_afa.files import check_output_folder, write_whole
from sae_lens_afa.loading.models import check_device
from sae_lens_afa.loading.text import text_dataset
from sae_lens_afa.runner import InterruptibleTrainingRunner
from sae_lens_afa.saes import AFAThresholdTrainingSAEConfig, TopAFATrainingSAEConfig

ARCHITECTURES = ("top_afa", "afa_threshold")
DEFAULT_TOKENS = 614_400  # 300 batches
HOOK_NAME = "blocks.2.hook_resid_pre"
D_IN, D_SAE, CONTEXT, BATCH = 192, 16 * 192, 128, 2048


def folder_of(output: Path, architecture: str) -> Path:
    """Where an SAE of the demo is: top_afa in `output`, the other one beside it."""
    return output if architecture == "top_afa" else output.with_name(f"{output.name}-{architecture}")


def demo_folders(output: str | Path = "runs/demo") -> list[Path]:
    """Where the demo's SAEs are, in the order of `ARCHITECTURES`."""
    return [folder_of(Path(output), architecture) for architecture in ARCHITECTURES]


def demo_config(
    output: Path, tokens: int, device: str, architecture: str = "top_afa"
) -> LanguageModelSAERunnerConfig[Any]:
    """The runner's configuration: the same fields as for any other model."""
    folder, steps = folder_of(output, architecture), tokens // BATCH
    return LanguageModelSAERunnerConfig(
        sae=_sae_config(architecture, steps),
        model_name=MODEL_NAME,
        hook_name=HOOK_NAME,
        dataset_path="King James Bible (bundled)",
        is_dataset_tokenized=False,
        streaming=False,
        context_size=CONTEXT,
        training_tokens=tokens,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=64,
        n_batches_in_buffer=16,
        lr=1e-3,
        lr_warm_up_steps=min(50, steps // 4),
        lr_decay_steps=steps // 5,
        adam_beta2=0.99,  # the paper's
        dead_feature_window=100,
        model_from_pretrained_kwargs={},
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=str(folder.with_name(folder.name + "-checkpoints")),
        output_path=str(folder),
        verbose=False,
    )


def _sae_config(architecture: str, steps: int) -> TrainingSAEConfig:
    if architecture == "top_afa":
        return TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE)
    # A warm-up that fits so short a run.
    return AFAThresholdTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, threshold_warm_up_steps=steps // 2)


def run_demo(
    output: str | Path = "runs/demo",
    *,
    tokens: int = DEFAULT_TOKENS,
    eval_tokens: int = evaluation.DEFAULT_TOKENS,
    device: str = "cpu",
    overwrite: bool = False,
    resume_from_checkpoint: str | Path | None = None,
    progress: bool = True,
) -> list[DemoResult]:
    """Train a top_afa and an afa_threshold SAE on the bundled model and text, save them, and evaluate them.

    Args:
        output: Folder for the top_afa SAE; the other one's has "-afa_threshold" after its name. Each is written when
            its training is complete, never in part.
        tokens: Training tokens of each, at least one batch of 2,048.
        eval_tokens: Held-out tokens to evaluate on; there are 49,152.
        device: "cpu", "cuda", ...
        overwrite: Replace existing folders.
        resume_from_checkpoint: Continue an interrupted demo: with the SAE of this checkpoint and those after it.
        progress: Say on stderr what is being done, and show the evaluation's progress bar.

    Returns:
        What each SAE does, in the order of `ARCHITECTURES`.

    Raises:
        FileExistsError: a folder to be written exists and `overwrite` is not given.
        FileNotFoundError: the checkpoint, or an SAE that was trained before it, is not there.
        ValueError: `tokens` is below one batch, `eval_tokens` is below 1, or there is no such device.
        TrainingInterrupted: stopped by SIGINT or SIGTERM; it says where the checkpoint is.
    """
    output = Path(output)
    first = 0 if resume_from_checkpoint is None else _index_of(Path(resume_from_checkpoint))
    for architecture in ARCHITECTURES[first:]:
        check_output_folder(folder_of(output, architecture), overwrite=overwrite)
    for architecture in ARCHITECTURES[:first]:
        folder = folder_of(output, architecture)
        if not (folder / SAE_CFG_FILENAME).is_file():
            raise FileNotFoundError(
                f"the demo's {architecture} SAE, which was trained before this checkpoint, is not in {folder};"
                " give the same --output as before."
            )
    if tokens < BATCH:
        raise ValueError(f"tokens must be at least {BATCH} (one training batch), got {tokens}.")
    if eval_tokens < 1:
        raise ValueError(f"eval_tokens must be at least 1, got {eval_tokens}.")
    check_device(device)
    n_saes, n_steps = len(ARCHITECTURES), len(ARCHITECTURES) + 2 - first
    stages = iter(range(1, n_steps + 1))

    def say(what: str) -> None:
        if progress:
            print(f"[{next(stages)}/{n_steps}] {what}", file=sys.stderr, flush=True)

    with expected_messages_off():
        say("load the language model and its text")
        model = load_model(device)
        dataset = text_dataset(load_text().train)
        for i, architecture in enumerate(ARCHITECTURES[first:]):
            cfg = demo_config(output, tokens, device, architecture)
            if i == 0 and resume_from_checkpoint is not None:
                cfg.resume_from_checkpoint = str(resume_from_checkpoint)
            say(
                f"train SAE {first + i + 1} of {n_saes}, {architecture}: {tokens:,} tokens (a first step may have to"
                " compile, for some seconds)"
            )
            torch.manual_seed(cfg.seed)
            InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset, overwrite=overwrite).run()
        say(f"evaluate the {n_saes} SAEs on {eval_tokens:,} held-out tokens")
        results = evaluation.evaluate(demo_folders(output), model, tokens=eval_tokens, progress=progress)
    text = json.dumps([asdict(result) for result in results], indent=2) + "\n"
    write_whole(output / "demo_result.json", lambda path: path.write_text(text))
    return results


def _index_of(checkpoint: Path) -> int:
    """Which of the demo's SAEs a checkpoint is of; the first where that cannot be read (the runner says why)."""
    path = checkpoint / SAE_CFG_FILENAME
    architecture = json.loads(path.read_text())["architecture"] if path.is_file() else ""
    return ARCHITECTURES.index(architecture) if architecture in ARCHITECTURES else 0
