"""What the demo's SAEs do on held-out text, and the table that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import SAE, ActivationsStore, HookedSAETransformer

from sae_lens_afa.demo.text import load_text
from sae_lens_afa.evals.language_model import run_afa_evals
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.loading.text import text_dataset

DEFAULT_TOKENS = 49_152  # the held-out chapters, once
# Of them: three passes of the language model for each SAE.
CROSS_ENTROPY_TOKENS = 16_384
_PROMPTS = 16


@dataclass(frozen=True)
class DemoResult:
    """What one of the demo's SAEs does on held-out text.

    Attributes:
        architecture: Its name in SAELens' registry.
        folder: The saved inference SAE.
        d_in, d_sae: Its widths.
        n_tokens: Held-out tokens measured.
        l0_mean, l0_q05, l0_q95: Active features per token: mean, 5 % and 95 % quantile.
        explained_variance: 1 - sum of squared errors / sum of squared deviations from the mean, as the SAE decodes:
            after its normalisation of the input.
        ce, ce_with_sae, ce_ablated: The language model's cross-entropy (nats per token) untouched, with the SAE's
            reconstruction in place of the activations, and with zeros there; of the first 16,384 tokens.
        norm_ratio: Median ||f|| / ||z||, with the decoder bias as a feature and z as the SAE decodes it.
        n_nonfinite: Held-out tokens left out because they gave a NaN or an infinity.
    """

    architecture: str
    folder: str
    d_in: int
    d_sae: int
    n_tokens: int
    l0_mean: float | None
    l0_q05: float | None
    l0_q95: float | None
    explained_variance: float | None
    ce: float | None
    ce_with_sae: float | None
    ce_ablated: float | None
    norm_ratio: float | None
    n_nonfinite: int = 0

    @classmethod
    def of(cls, folder: str | Path, sae: SAE[Any], result: AFAResult) -> DemoResult:
        """The figures of an evaluation that the demo shows."""
        return cls(
            architecture=sae.cfg.architecture(),
            folder=str(folder),
            d_in=sae.cfg.d_in,
            d_sae=sae.cfg.d_sae,
            n_tokens=result.n_tokens,
            l0_mean=result.l0_mean,
            l0_q05=result.l0_q05,
            l0_q95=result.l0_q95,
            explained_variance=result.explained_variance,
            ce=_finite(result.ce_loss_without_sae),
            ce_with_sae=_finite(result.ce_loss_with_sae),
            ce_ablated=_finite(result.ce_loss_with_ablation),
            norm_ratio=result.norm_ratio_median,
            n_nonfinite=result.n_nonfinite or 0,
        )


_ROWS: dict[str, Callable[[DemoResult], str]] = {
    "tokens with NaN or infinity, left out": lambda r: _cell(r.n_nonfinite or None, ",d"),
    "active features per token (L0)": lambda r: _cell(r.l0_mean, ".1f"),
    "  5-95 % of tokens": lambda r: f"{_cell(r.l0_q05, '.0f')}-{_cell(r.l0_q95, '.0f')}",
    "explained variance": lambda r: _cell(r.explained_variance, ".3f"),
    "cross-entropy of the model, nats/token": lambda r: _cell(r.ce, ".3f"),
    "  with the SAE in place": lambda r: _cell(r.ce_with_sae, ".3f"),
    "  with the layer set to zero": lambda r: _cell(r.ce_ablated, ".3f"),
    "||f|| / ||z||, median": lambda r: _cell(r.norm_ratio, ".3f"),
}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def table(results: Sequence[DemoResult]) -> str:
    """For the terminal: a column for each SAE, and a line where a code is not sparse."""
    first, width = results[0], max(map(len, _ROWS))
    rows = {name: cell for name, cell in _ROWS.items() if any(cell(result) != "-" for result in results)}

    def line(name: str, cell: Callable[[DemoResult], str]) -> str:
        return f"  {name:{width}}  " + "  ".join(f"{cell(r):>{max(len(r.architecture), 9)}}" for r in results)

    lines = [f"d_in {first.d_in}, d_sae {first.d_sae}, on {first.n_tokens:,} held-out tokens"]
    lines += [line("", lambda r: r.architecture), *(line(name, cell) for name, cell in rows.items())]
    lines += [
        f"  ({r.architecture}'s L0 is above d_in = {r.d_in}: the paper's loss pins the norm of the code,\n"
        "   not how few features carry it)"
        for r in results
        if r.l0_mean is not None and r.l0_mean > r.d_in
    ]
    return "\n".join(lines)


def evaluate(
    folders: Sequence[Path],
    model: HookedSAETransformer,
    *,
    tokens: int = DEFAULT_TOKENS,
    progress: bool = True,
) -> list[DemoResult]:
    """Measure the SAEs saved in `folders` on the held-out chapters: `tokens` of them, which are read once for all."""
    device = str(next(model.parameters()).device)
    saes = {str(folder): SAE.load_from_disk(folder, device=device) for folder in folders}
    store = ActivationsStore.from_sae(
        model, next(iter(saes.values())), text_dataset(load_text().held_out), streaming=False,
        store_batch_size_prompts=_PROMPTS, device=device,
    )  # fmt: skip
    results = run_afa_evals(
        saes, store, model, tokens=tokens, cross_entropy_tokens=min(tokens, CROSS_ENTROPY_TOKENS), progress=progress
    )
    return [DemoResult.of(folder, sae, results[folder]) for folder, sae in saes.items()]
