"""AFA metrics: streaming over tensors, over an SAE with its model and text, and live in SAELens' runners."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_afa.evals.evaluator import AFAEvaluator
    from sae_lens_afa.evals.judge import evaluate_activations
    from sae_lens_afa.evals.language_model import run_afa_evals
    from sae_lens_afa.evals.metrics import AFAMetrics
    from sae_lens_afa.evals.result import AFAResult, results_table
else:
    from sae_lens_afa._lazy import lazy_names

    # The command reads and draws evaluations, which needs neither torch nor SAELens.
    __getattr__, __dir__ = lazy_names(
        globals(),
        {
            "sae_lens_afa.evals.evaluator": ("AFAEvaluator",),
            "sae_lens_afa.evals.language_model": ("run_afa_evals",),
            "sae_lens_afa.evals.metrics": ("AFAMetrics",),
            "sae_lens_afa.evals.result": ("AFAResult", "results_table"),
            "sae_lens_afa.evals.judge": ("evaluate_activations",),
        },
    )

__all__ = [
    "AFAEvaluator",
    "AFAMetrics",
    "AFAResult",
    "evaluate_activations",
    "results_table",
    "run_afa_evals",
]
