"""What the demo's SAEs do on held-out text, and the table that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens import SAE, ActivationsStore, HookedSAETransformer
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa._support import text_dataset
from sae_lens_afa.demo.text import load_text
from sae_lens_afa.functional import feature_norm
from sae_lens_afa.saes import AFAThresholdSAE, TopAFASAE

_EVAL_PROMPTS, _EVAL_BATCHES = 16, 24  # 49,152 tokens: the held-out chapters, once


@dataclass(frozen=True)
class DemoResult:
    """What one of the demo's SAEs does on held-out text.

    Attributes:
        architecture: Its name in SAELens' registry.
        folder: The saved inference SAE.
        d_in, d_sae: Its widths.
        n_tokens: Held-out tokens measured.
        l0_mean, l0_q05, l0_q95: Active features per token: mean, 5 % and 95 % quantile.
        explained_variance: 1 - sum of squared errors / sum of squared deviations from the mean.
        ce, ce_with_sae, ce_ablated: The language model's cross-entropy (nats per token) untouched, with the SAE's
            reconstruction in place of the activations, and with zeros there.
        norm_ratio: Median ||f|| / ||z||, with the decoder bias as a feature and z as the SAE decodes it.
    """

    architecture: str
    folder: str
    d_in: int
    d_sae: int
    n_tokens: int
    l0_mean: float
    l0_q05: float
    l0_q95: float
    explained_variance: float
    ce: float
    ce_with_sae: float
    ce_ablated: float
    norm_ratio: float


_ROWS: dict[str, Callable[[DemoResult], str]] = {
    "active features per token (L0)": lambda r: f"{r.l0_mean:.1f}",
    "  5-95 % of tokens": lambda r: f"{r.l0_q05:.0f}-{r.l0_q95:.0f}",
    "explained variance": lambda r: f"{r.explained_variance:.3f}",
    "cross-entropy of the model, nats/token": lambda r: f"{r.ce:.3f}",
    "  with the SAE in place": lambda r: f"{r.ce_with_sae:.3f}",
    "  with the layer set to zero": lambda r: f"{r.ce_ablated:.3f}",
    "||f|| / ||z||, median": lambda r: f"{r.norm_ratio:.3f}",
}


def table(results: Sequence[DemoResult]) -> str:
    """For the terminal: a column for each SAE, and a line where a code is not sparse."""
    first, width = results[0], max(map(len, _ROWS))

    def line(name: str, cell: Callable[[DemoResult], str]) -> str:
        return f"  {name:{width}}  " + "  ".join(f"{cell(r):>{max(len(r.architecture), 9)}}" for r in results)

    lines = [f"d_in {first.d_in}, d_sae {first.d_sae}, on {first.n_tokens:,} held-out tokens"]
    lines += [line("", lambda r: r.architecture), *(line(name, cell) for name, cell in _ROWS.items())]
    lines += [
        f"  ({r.architecture}'s L0 is above d_in = {r.d_in}: the paper's loss pins the norm of the code,\n"
        "   not how few features carry it)"
        for r in results
        if r.l0_mean > r.d_in
    ]
    return "\n".join(lines)


@torch.no_grad()
def evaluate(folder: str | Path, model: HookedSAETransformer) -> DemoResult:
    """Measure the SAE saved in `folder` on the held-out chapters."""
    device = str(next(model.parameters()).device)
    sae = SAE.load_from_disk(folder, device=device)
    assert isinstance(sae, (TopAFASAE, AFAThresholdSAE))

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
        architecture=sae.cfg.architecture(),
        folder=str(folder),
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
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
