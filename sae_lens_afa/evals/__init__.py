"""AFA metrics: streaming over tensors, over an SAE with its model and text, and live in SAELens' runners."""

from sae_lens_afa.evals.evaluator import AFAEvaluator
from sae_lens_afa.evals.language_model import run_afa_evals
from sae_lens_afa.evals.metrics import AFAMetrics
from sae_lens_afa.evals.result import AFAResult
from sae_lens_afa.evals.run import evaluate_activations
from sae_lens_afa.evals.table import results_table

__all__ = [
    "AFAEvaluator",
    "AFAMetrics",
    "AFAResult",
    "evaluate_activations",
    "results_table",
    "run_afa_evals",
]
