"""Prints, as JSON, where a package that was extended by an architecture and a metric knows of them.

    python tests/extended_package.py ROOT ARCHITECTURE METRIC

in a folder to write to, with the extended package first on PYTHONPATH; ROOT is the folder of its pyproject.toml.
"""

import json
import sys

import torch
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from sae_lens import SAE, registry

import sae_lens_afa as afa
from sae_lens_afa.cli.runner_flags import parse_config
from sae_lens_afa.evals import results_table
from sae_lens_afa.evals.metric_list import SWEEPS, metrics_shown_in
from sae_lens_afa.experiments.presets import preset_arms
from sae_lens_afa.hub._card import CardOptions, write_card
from sae_lens_afa.hub._contents import SAEFacts
from sae_lens_afa.plots.styles import styles_of


def about_the_architecture(root: str, name: str) -> dict:
    """What registries, names, flags, sweeps, plots, saved files and entry points know of it."""
    training_sae, training_config = registry.get_sae_training_class(name)
    trained = training_sae(training_config(d_in=16, d_sae=64))
    trained.save_inference_model("trained")
    loaded = SAE.load_from_disk("trained")
    by_flags = parse_config(["--architecture", name, "--d_in", "16", "--d_sae", "64", "--bits", "32"]).sae
    exported = afa.export_jumprelu(loaded, torch.randn(1024, 16))
    return {
        "offered": [public for public in dir(afa) if public.startswith("BitBudget") and hasattr(afa, public)],
        "loaded": type(loaded).__name__,
        "active": int((loaded.encode(torch.randn(1, 16)) != 0).sum()),
        "by flags": [type(by_flags).__name__, by_flags.k],
        "in sweeps": {
            sweep: [
                value for arm in preset_arms(sweep, "full", 1, 1) if arm.architecture == name for value in arm.values
            ]
            for sweep in ("ground-truth", "activations")
        },
        "color": styles_of([name])[name].color,
        "exported from": afa.jumprelu_report(exported).original_architecture,
        "card": card_of(SAEFacts(loaded.cfg.to_dict(), {}, {})),
        "entry points": ProjectMetadata(root, PluginManager()).core.entry_points["sae_lens.architectures"],
    }


def card_of(facts: SAEFacts) -> str:
    return write_card(None, "me/saes", {"sae": facts}, CardOptions())


def about_the_metric(name: str) -> dict:
    """What a result, its table, its JSON, sweeps and cards know of it."""
    metrics = afa.AFAMetrics(d_sae=64)
    feature_acts = torch.zeros(10, 64)
    feature_acts[:, :16] = 1.0
    metrics.update(torch.randn(10, 16), feature_acts, torch.randn(64, 16))
    result = metrics.compute()
    return {
        "value": getattr(result, name),
        "to_dict": result.to_dict()[name],
        "file": json.loads(result.to_json())[name],
        "table": results_table({"an SAE": result}),
        "columns": [*result.tokens],
        "sweeps": [metric.heading for metric in metrics_shown_in(SWEEPS)],
        "card": card_of(SAEFacts({}, {}, result.to_dict())),
    }


if __name__ == "__main__":
    root, architecture, metric = sys.argv[1:]
    print(json.dumps({"architecture": about_the_architecture(root, architecture), "metric": about_the_metric(metric)}))
