"""`sae-lens-afa demo`: train this package's two SAEs without a k on the bundled model and text, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa._support import check_device, expected_messages_off, text_dataset
from sae_lens_afa.demo.evaluation import DemoResult, evaluate
from sae_lens_afa.demo.model import MODEL_NAME, load_model
from sae_lens_afa.demo.text import load_text
from sae_lens_afa.files import check_output_folder, write_whole
from sae_lens_afa.runner import InterruptibleTrainingRunner
from sae_lens_afa.saes import AFAThresholdTrainingSAEConfig, TopAFATrainingSAEConfig

ARCHITECTURES = ("top_afa", "afa_threshold")
DEFAULT_TOKENS = 819_200  # 400 batches
HOOK_NAME = "blocks.2.hook_resid_pre"
D_IN, D_SAE, CONTEXT, BATCH = 192, 16 * 192, 128, 2048


def folder_of(output: Path, architecture: str) -> Path:
    """Where an SAE of the demo is: top_afa in `output`, the other one beside it."""
    return output if architecture == "top_afa" else output.with_name(f"{output.name}-{architecture}")


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
    device: str = "cpu",
    overwrite: bool = False,
    resume_from_checkpoint: str | Path | None = None,
) -> list[DemoResult]:
    """Train a top_afa and an afa_threshold SAE on the bundled model and text, save them, and evaluate them.

    Args:
        output: Folder for the top_afa SAE; the other one's has "-afa_threshold" after its name. Each is written when
            its training is complete, never in part.
        tokens: Training tokens of each, at least one batch of 2,048.
        device: "cpu", "cuda", ...
        overwrite: Replace existing folders.
        resume_from_checkpoint: Continue an interrupted demo: with the SAE of this checkpoint and those after it.

    Returns:
        What each SAE does, in the order of `ARCHITECTURES`.

    Raises:
        FileExistsError: a folder to be written exists and `overwrite` is not given.
        FileNotFoundError: the checkpoint, or an SAE that was trained before it, is not there.
        ValueError: `tokens` is below one batch, or there is no such device.
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
    check_device(device)
    with expected_messages_off():
        model = load_model(device)
        dataset = text_dataset(load_text().train)
        for i, architecture in enumerate(ARCHITECTURES[first:]):
            cfg = demo_config(output, tokens, device, architecture)
            if i == 0 and resume_from_checkpoint is not None:
                cfg.resume_from_checkpoint = str(resume_from_checkpoint)
            torch.manual_seed(cfg.seed)
            InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
        results = [evaluate(folder_of(output, architecture), model) for architecture in ARCHITECTURES]
    text = json.dumps([asdict(result) for result in results], indent=2) + "\n"
    write_whole(output / "demo_result.json", lambda path: path.write_text(text))
    return results


def _index_of(checkpoint: Path) -> int:
    """Which of the demo's SAEs a checkpoint is of; the first where that cannot be read (the runner says why)."""
    path = checkpoint / SAE_CFG_FILENAME
    architecture = json.loads(path.read_text())["architecture"] if path.is_file() else ""
    return ARCHITECTURES.index(architecture) if architecture in ARCHITECTURES else 0
