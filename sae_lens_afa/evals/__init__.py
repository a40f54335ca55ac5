"""AFA metrics: streaming over tensors, over an SAE with its model and text, and live in SAELens' runners."""

from sae_lens_afa.evals.metrics import AFAMetrics
from sae_lens_afa.evals.result import AFAResult

__all__ = ["AFAMetrics", "AFAResult"]
