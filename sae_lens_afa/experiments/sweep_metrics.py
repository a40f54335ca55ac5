"""The metrics of a sweep: those of `AFAResult` that sweeps show, and those that only a sweep can measure."""

from __future__ import annotations

from sae_lens_afa.evals.metric_list import SWEEPS, Metric, metrics_shown_in

_OWN = (
    Metric(name="true_l0", heading="true L0"),
    Metric(name="mse", heading="MSE"),
    Metric(name="mcc", heading="MCC"),
    Metric(name="f1", heading="F1"),
    Metric(name="precision", heading="precision"),
    Metric(name="recall", heading="recall"),
    Metric(name="uniqueness", heading="uniqueness"),
    Metric(name="dead_latents", heading="dead"),
    Metric(name="shrinkage", heading="shrinkage"),
    Metric(name="l0_empty", heading="L0 without features"),
    Metric(name="concept_f1", heading="F1 of concepts"),
    Metric(name="mdl_bits", heading="MDL bits"),
)


def sweep_metrics() -> list[Metric]:
    """Return all metrics of sweeps in the order of their tables; a sweep has those that apply to it."""
    shared = metrics_shown_in(SWEEPS)
    return [
        *(metric for metric in shared if metric.form is None),
        *_OWN,
        *(metric for metric in shared if metric.form is not None),
    ]


def heading_of(name: str) -> str:
    """Return the heading of a metric of sweeps.

    Raises:
        KeyError: there is none of that name.
    """
    return {metric.name: metric.heading for metric in sweep_metrics()}[name]
