"""The demo run: this package's two SAEs without a k, trained side by side on the bundled model and text, and judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.defaults import BUNDLED_MODEL, DEMO_EVAL_TOKENS, DEMO_TOKENS
from sae_lens_afa.demo.chapters import TEXT_NAME, held_out_dataset, load_text
from sae_lens_afa.demo.model import load_model
from sae_lens_afa.feature_page import features_by_name
from sae_lens_afa.files import check_output_folder
from sae_lens_afa.loading.text import text_dataset
from sae_lens_afa.reports import EvalReport, check_evaluation, evaluate_saes
from sae_lens_afa.runner import InterruptibleTrainingRunner
from sae_lens_afa.saes.afa_pursuit_sae import AFAPursuitTrainingSAEConfig
from sae_lens_afa.saes.top_afa_sae import TopAFATrainingSAEConfig

TRAINED = ("top_afa", "afa_pursuit")  # in this order
HOOK_NAME = "blocks.2.hook_resid_pre"
D_IN, D_SAE, CONTEXT, BATCH = 192, 16 * 192, 128, 2048
_FEATURES_TOKENS = 16_384  # of the held-out ones: enough for a look
_CROSS_ENTROPY_TOKENS = 16_384  # of the held-out ones: three passes of the language model for each SAE


def folder_of(output: Path, architecture: str) -> Path:
    """Return where an SAE of the demo is: top_afa in `output`, the other one beside it."""
    return output if architecture == "top_afa" else output.with_name(f"{output.name}-{architecture}")


def demo_folders(output: str | Path = "runs/demo") -> list[Path]:
    """Return where the demo's SAEs are: first top_afa, then afa_pursuit.

    Example:
        >>> import sae_lens_afa as afa
        >>> [folder.name for folder in afa.demo.demo_folders("runs/demo")]
        ['demo', 'demo-afa_pursuit']
    """
    return [folder_of(Path(output), architecture) for architecture in TRAINED]


def demo_config(
    output: Path, tokens: int, device: str, architecture: str = "top_afa"
) -> LanguageModelSAERunnerConfig[Any]:
    """Return the runner's configuration: the same fields as for any other model."""
    folder, steps = folder_of(output, architecture), tokens // BATCH
    return LanguageModelSAERunnerConfig(
        sae=_sae_config(architecture, steps),
        model_name=BUNDLED_MODEL,
        hook_name=HOOK_NAME,
        dataset_path=TEXT_NAME,
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
    # A growth that fits so short a run.
    return AFAPursuitTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, growth_steps=steps // 3)


def run_demo(
    output: str | Path = "runs/demo",
    *,
    tokens: int = DEMO_TOKENS,
    eval_tokens: int = DEMO_EVAL_TOKENS,
    device: str = "cpu",
    overwrite: bool = False,
    resume_from_checkpoint: str | Path | None = None,
    progress: bool = True,
) -> EvalReport:
    """Train a top_afa and an afa_pursuit SAE on the bundled model and text, save them, and evaluate them.

    Args:
        output: Folder for the top_afa SAE; the other one's has "-afa_pursuit" after its name, that of the evaluation
            "-eval", that of the other one's features "-features". Each is written when it is complete, never in part.
        tokens: Training tokens of each, at least one batch of 2,048.
        eval_tokens: Held-out tokens to evaluate on; there are 49,152.
        device: "cpu", "cuda", ...
        overwrite: Replace existing folders.
        resume_from_checkpoint: Continue an interrupted demo: with the SAE of this checkpoint and those after it.
        progress: Say on stderr what is being done, and show the evaluation's progress bar.

    Returns:
        The evaluation, with a result for each architecture.

    Raises:
        FileExistsError: a folder to be written exists and `overwrite` is not given.
        FileNotFoundError: the checkpoint, or an SAE that was trained before it, is not there.
        ValueError: `tokens` is below one batch, `eval_tokens` is below 1, or there is no such device.
        TrainingInterrupted: stopped by SIGINT or SIGTERM; it says where the checkpoint is.

    Example:
        >>> import sae_lens_afa as afa
        >>> report = afa.demo.run_demo("runs/demo", tokens=20_480)  # doctest: +SKIP
        >>> report.results["afa_pursuit"].l0_mean  # doctest: +SKIP
    """
    output = Path(output)
    first = 0 if resume_from_checkpoint is None else _index_of(Path(resume_from_checkpoint))
    if tokens < BATCH:
        raise ValueError(f"tokens must be at least {BATCH} (one training batch), got {tokens}.")
    if eval_tokens < 1:
        raise ValueError(f"eval_tokens must be at least 1, got {eval_tokens}.")
    _check_folders(output, first, overwrite=overwrite)
    judged = output.with_name(f"{output.name}-eval")
    check_evaluation(judged, tokens=eval_tokens, device=device, overwrite=overwrite)
    check_output_folder(features_folder(output), overwrite=overwrite)
    say = _announcer(len(TRAINED) + 3 - first, progress=progress)
    with expected_messages_off():
        say("load the language model and its text")
        model, text = load_model(device), text_dataset(load_text().train)
        for i in range(first, len(TRAINED)):
            say(
                f"train SAE {i + 1} of {len(TRAINED)}, {TRAINED[i]}: {tokens:,} tokens (a first step may have to"
                " compile, for some seconds)"
            )
            cfg = demo_config(output, tokens, device, TRAINED[i])
            cfg.resume_from_checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint and i == first else None
            InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=text, overwrite=overwrite).run()
        say(f"evaluate the {len(TRAINED)} SAEs on {eval_tokens:,} held-out tokens")
        saes = {
            architecture: SAE.load_from_disk(folder_of(output, architecture), device=device) for architecture in TRAINED
        }
        report = evaluate_saes(
            saes, judged, model=model, dataset=held_out_dataset(), tokens=eval_tokens,
            cross_entropy_tokens=min(eval_tokens, _CROSS_ENTROPY_TOKENS), device=device, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
        say(f"look at the features of {TRAINED[-1]} on {min(eval_tokens, _FEATURES_TOKENS):,} of them")
        features_by_name(
            saes[TRAINED[-1]], features_folder(output), name=TRAINED[-1], model=model, dataset=held_out_dataset(),
            tokens=min(eval_tokens, _FEATURES_TOKENS), device=device, overwrite=overwrite, progress=progress,
        )  # fmt: skip
        return report


def features_folder(output: str | Path = "runs/demo") -> Path:
    """Return where the page of the demo's features is: those of afa_pursuit, which are few for a token.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.demo.features_folder("runs/demo").name
        'demo-features'
    """
    return Path(output).with_name(f"{Path(output).name}-features")


def _index_of(checkpoint: Path) -> int:
    """Return which of the demo's SAEs a checkpoint is of; the first where that cannot be read (the runner says why)."""
    path = checkpoint / SAE_CFG_FILENAME
    architecture = json.loads(path.read_text())["architecture"] if path.is_file() else ""
    return TRAINED.index(architecture) if architecture in TRAINED else 0


def _check_folders(output: Path, first: int, *, overwrite: bool) -> None:
    """Refuse folders that cannot be written, from the SAE `first` on, or where one before it is not there."""
    for architecture in TRAINED[first:]:
        check_output_folder(folder_of(output, architecture), overwrite=overwrite)
    for architecture in TRAINED[:first]:
        folder = folder_of(output, architecture)
        if not (folder / SAE_CFG_FILENAME).is_file():
            raise FileNotFoundError(
                f"the demo's {architecture} SAE, which was trained before this checkpoint, is not in {folder}: give"
                " output as before."
            )


def _announcer(n_stages: int, *, progress: bool) -> Callable[[str], None]:
    """Return a function that says on stderr which of so many stages begins."""
    stages = iter(range(1, n_stages + 1))

    def say(what: str) -> None:
        if progress:
            print(f"[{next(stages)}/{n_stages}] {what}", file=sys.stderr, flush=True)

    return say
