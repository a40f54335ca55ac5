"""AFA figures in SAELens' synthetic runner; apart, because `sae_lens.synthetic` imports plotting libraries."""

from __future__ import annotations

from typing import Any

from sae_lens.synthetic import SyntheticSAERunner
from typing_extensions import override

from sae_lens_afa.evals.evaluator import AFAEvaluator

__all__ = ["AFASyntheticSAERunner"]


class AFASyntheticSAERunner(SyntheticSAERunner[Any]):
    """SAELens' `SyntheticSAERunner` with AFA figures beside its scores at every evaluation."""

    @override
    def _create_evaluator(self) -> Any:
        return AFAEvaluator(super()._create_evaluator())
