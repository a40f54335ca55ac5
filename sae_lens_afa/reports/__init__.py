"""Evaluations as folders: judged, written, read and drawn. Reading one imports neither torch nor SAELens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lens_afa.reports.folder import EvalReport, draw_plots, read_report

if TYPE_CHECKING:
    from sae_lens_afa.reports.evaluation import check_evaluation, evaluate_saes
else:
    from sae_lens_afa._lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        globals(), {"sae_lens_afa.reports.evaluation": ("check_evaluation", "evaluate_saes")}
    )

__all__ = ["EvalReport", "check_evaluation", "draw_plots", "evaluate_saes", "read_report"]
