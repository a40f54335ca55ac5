"""`sae-lens-afa demo`: train a top-AFA SAE on the bundled model and text, and say how good it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, ActivationsStore, HookedSAETransformer, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa._support import check_device, expected_messages_off, text_dataset, write_whole
from sae_lens_afa.demo.model import MODEL_NAME, load_model
from sae_lens_afa.demo.text import load_text
from sae_lens_afa.functional import feature_norm
from sae_lens_afa.runner import InterruptibleTrainingRunner, check_output_folder
from sae_lens_afa.saes import TopAFASAE, TopAFATrainingSAEConfig

DEFAULT_TOKENS = 819_200  # 400 batches
HOOK_NAME = "blocks.2.hook_resid_pre"
D_IN, D_SAE, CONTEXT, BATCH = 192, 16 * 192, 128, 2048
_EVAL_PROMPTS, _EVAL_BATCHES = 16, 24  # 49,152 tokens: the held-out chapters, once


@dataclass(frozen=True)
class DemoResult:
    """What the demo's SAE does on held-out text.

    Attributes:
        folder: The saved inference SAE.
        n_tokens: Held-out tokens measured.
        l0_mean, l0_q05, l0_q95: Active features per token: mean, 5 % and 95 % quantile.
        explained_variance: 1 - sum of squared errors / sum of squared deviations from the mean.
        ce, ce_with_sae, ce_ablated: The language model's cross-entropy (nats per token) untouched, with the SAE's
            reconstruction in place of the activations, and with zeros there.
        norm_ratio: Median ||f|| / ||z||, with the decoder bias as a feature and z as the SAE decodes it.
    """

    folder: str
    n_tokens: int
    l0_mean: float
    l0_q05: float
    l0_q95: float
    explained_variance: float
    ce: float
    ce_with_sae: float
    ce_ablated: float
    norm_ratio: float

    def __str__(self) -> str:
        """A table for the terminal."""
        rows = [
            ("active features per token (L0)", f"{self.l0_mean:.1f}  (5-95 %: {self.l0_q05:.0f}-{self.l0_q95:.0f})"),
            ("explained variance", f"{self.explained_variance:.3f}"),
            ("cross-entropy of the model", f"{self.ce:.3f} nats/token"),
            ("  with the SAE in place", f"{self.ce_with_sae:.3f}"),
            ("  with the layer set to zero", f"{self.ce_ablated:.3f}"),
            ("||f|| / ||z||, median", f"{self.norm_ratio:.3f}"),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{width}}  {value}" for name, value in rows]
        if self.l0_mean > D_IN:
            lines.append(
                f"  (L0 is above d_in = {D_IN}: the paper's loss pins the norm of the code,\n"
                "   not how few features carry it)"
            )
        return "\n".join([f"top_afa, d_in {D_IN}, d_sae {D_SAE}, on {self.n_tokens:,} held-out tokens", *lines])


def demo_config(output: Path, tokens: int, device: str) -> LanguageModelSAERunnerConfig[Any]:
    """The runner's configuration: the same fields as for any other model."""
    return LanguageModelSAERunnerConfig(
        sae=TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
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
        lr_warm_up_steps=min(50, tokens // BATCH // 4),
        lr_decay_steps=tokens // BATCH // 5,
        adam_beta2=0.99,  # the paper's
        dead_feature_window=100,
        model_from_pretrained_kwargs={},
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=str(output.with_name(output.name + "-checkpoints")),
        output_path=str(output),
        verbose=False,
    )


def run_demo(
    output: str | Path = "runs/demo",
    *,
    tokens: int = DEFAULT_TOKENS,
    device: str = "cpu",
    overwrite: bool = False,
    resume_from_checkpoint: str | Path | None = None,
) -> DemoResult:
    """Train a top-AFA SAE on the bundled model and text, save it for inference in `output`, and evaluate it.

    Args:
        output: Folder for the SAE; written when training is complete, never in part.
        tokens: Training tokens, at least one batch of 2,048.
        device: "cpu", "cuda", ...
        overwrite: Replace an existing `output`.
        resume_from_checkpoint: Continue an interrupted demo.

    Raises:
        FileExistsError: `output` exists and `overwrite` is not given.
        ValueError: `tokens` is below one batch, or there is no such device.
        TrainingInterrupted: stopped by SIGINT or SIGTERM; it says where the checkpoint is.
    """
    output = Path(output)
    check_output_folder(output, overwrite=overwrite)
    if tokens < BATCH:
        raise ValueError(f"tokens must be at least {BATCH} (one training batch), got {tokens}.")
    check_device(device)
    cfg = demo_config(output, tokens, device)
    cfg.resume_from_checkpoint = None if resume_from_checkpoint is None else str(resume_from_checkpoint)
    torch.manual_seed(cfg.seed)
    with expected_messages_off():
        model = load_model(device)
        dataset = text_dataset(load_text().train)
        InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset).run()
        result = evaluate(output, model)
    text = json.dumps(asdict(result), indent=2) + "\n"
    write_whole(output / "demo_result.json", lambda path: path.write_text(text))
    return result


@torch.no_grad()
def evaluate(folder: str | Path, model: HookedSAETransformer) -> DemoResult:
    """Measure the SAE saved in `folder` on the held-out chapters."""
    device = str(next(model.parameters()).device)
    sae = SAE.load_from_disk(folder, device=device)
    assert isinstance(sae, TopAFASAE)

    def held_out() -> ActivationsStore:  # from its first window: a store goes on where it was left
        return ActivationsStore.from_sae(
            model, sae, text_dataset(load_text().held_out), streaming=False, store_batch_size_prompts=_EVAL_PROMPTS,
            device=device,
        )  # fmt: skip

    metrics, _ = run_evals(
        sae, held_out(), model, ActivationScaler(),
        EvalConfig(n_eval_reconstruction_batches=_EVAL_BATCHES, compute_ce_loss=True), exclude_special_tokens=False,
    )  # fmt: skip
    ce = metrics["model_performance_preservation"]
    store = held_out()
    inputs, errors, l0, ratios = [], [], [], []
    for _ in range(_EVAL_BATCHES):
        z = store.get_activations(store.get_batch_tokens()).flatten(0, 1)
        acts = sae.encode(z)
        x = sae.run_time_activation_norm_fn_in(z)
        inputs.append(z.cpu())
        errors.append((sae.decode(acts) - z).cpu())
        l0.append(torch.count_nonzero(acts, dim=-1).float().cpu())
        ratios.append((feature_norm(acts, sae.W_dec, sae.b_dec) / torch.linalg.vector_norm(x, dim=-1)).cpu())
    z, error, l0 = torch.cat(inputs).double(), torch.cat(errors).double(), torch.cat(l0)
    q05, q95 = torch.quantile(l0, torch.tensor([0.05, 0.95])).tolist()
    return DemoResult(
        folder=str(folder),
        n_tokens=len(z),
        l0_mean=float(l0.mean()),
        l0_q05=q05,
        l0_q95=q95,
        explained_variance=float(1 - error.square().sum() / (z - z.mean(0)).square().sum()),
        ce=ce["ce_loss_without_sae"],
        ce_with_sae=ce["ce_loss_with_sae"],
        ce_ablated=ce["ce_loss_with_ablation"],
        norm_ratio=float(torch.cat(ratios).median()),
    )
