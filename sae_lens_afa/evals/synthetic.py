"""AFA metrics in SAELens' synthetic runner; apart, because `sae_lens.synthetic` imports plotting libraries."""

from __future__ import annotations

from typing import Any

from sae_lens.synthetic import SyntheticSAERunner
from typing_extensions import override

from sae_lens_afa.evals.evaluator import AFAEvaluator

__all__ = ["AFASyntheticSAERunner"]


class AFASyntheticSAERunner(SyntheticSAERunner[Any]):
    """SAELens' `SyntheticSAERunner` with AFA metrics beside its scores at every evaluation.

    Example:
        >>> from sae_lens import LoggingConfig
        >>> from sae_lens.saes.standard_sae import StandardTrainingSAEConfig
        >>> from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunnerConfig
        >>> from sae_lens_afa.evals.synthetic import AFASyntheticSAERunner
        >>> cfg = SyntheticSAERunnerConfig(
        ...     synthetic_model=SyntheticModelConfig(num_features=8, hidden_dim=4),
        ...     sae=StandardTrainingSAEConfig(d_in=4, d_sae=8),
        ...     training_samples=1024, batch_size=256, eval_frequency=0, run_final_eval=False, output_path=None,
        ...     logger=LoggingConfig(log_to_wandb=False),
        ... )
        >>> AFASyntheticSAERunner(cfg).run().sae.cfg.d_sae
        8
    """

    @override
    def _create_evaluator(self) -> Any:
        return AFAEvaluator(super()._create_evaluator())
