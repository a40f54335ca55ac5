"""Prints, as JSON, where a package that was extended by an architecture and a metric knows of them.

    python tests/extended_package.py ROOT ARCHITECTURE METRIC

in a folder to write to, with the extended package first on PYTHONPATH; ROOT is the folder of its pyproject.toml.
"""

import json
import sys
from dataclasses import asdict

import torch
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from sae_lens import SAE, registry

import sae_lens_afa as afa
from sae_lens_afa.cli.runner_flags import parse_config
from sae_lens_afa.evals import results_table
from sae_lens_afa.evals.metric_list import SWEEPS, metrics_shown_in
from sae_lens_afa.hub._card import CardOptions, write_card
from sae_lens_afa.hub._contents import SAEFacts
from sae_lens_afa.plots.styles import styles_of


def about_the_architecture(root: str, name: str) -> dict:
    """What registries, names, flags, presets, plots, saved files and entry points know of it."""
    training_sae, training_config = registry.get_sae_training_class(name)
    trained = training_sae(training_config(d_in=16, d_sae=64))
    trained.cfg.metadata.model_name, trained.cfg.metadata.hook_name = "gpt2", "blocks.0.hook_resid_pre"
    trained.save_inference_model("trained")
    loaded = SAE.load_from_disk("trained")
    cfg = parse_config(["--architecture", name, "--d_in", "16", "--d_sae", "64", "--bits", "32"])
    exported = afa.export_jumprelu(loaded, torch.randn(1024, 16))
    return {
        "public names": [n for n in (training_sae.__name__, training_config.__name__) if hasattr(afa, n)],
        "offered": [n for n in dir(afa) if n.startswith("BitBudget")],
        "loaded": type(loaded).__name__,
        "active": int((loaded.encode(torch.randn(1, 16)) != 0).sum()),
        "by flags": [type(cfg.sae).__name__, cfg.sae.k],
        "in presets": {
            "ground-truth": [len(arm.values) for arm in ground_truth_arms() if arm.architecture == name],
        },
        "color": styles_of([name])[name].color,
        "exported from": afa.jumprelu_report(exported).original_architecture,
        "card": write_card(None, "me/saes", {"trained": SAEFacts(json.load(open("trained/cfg.json")))}, CardOptions()),
        "entry points": ProjectMetadata(root, PluginManager()).core.entry_points["sae_lens.architectures"],
    }


def ground_truth_arms():
    return afa.experiments.ground_truth_sweep("full").arms


def about_the_metric(name: str) -> dict:
    """What a result, its table, its JSON, sweeps and cards know of it."""
    metrics = afa.AFAMetrics(d_sae=64)
    feature_acts = torch.zeros(10, 64)
    feature_acts[:, :16] = 1.0
    metrics.update(torch.randn(10, 16), feature_acts, torch.randn(64, 16))
    result = metrics.compute()
    result.save("result.json")
    facts = SAEFacts({"architecture": "topk", "d_in": 16, "d_sae": 64}, {}, result.to_dict())
    return {
        "value": getattr(result, name),
        "to_dict": result.to_dict()[name],
        "file": json.load(open("result.json"))[name],
        "table": str(results_table({"an SAE": result})),
        "columns": [*result.tokens],
        "sweeps": [metric.heading for metric in metrics_shown_in(SWEEPS)],
        "card": write_card(None, "me/saes", {"sae": facts}, CardOptions()),
    }


if __name__ == "__main__":
    root, architecture, metric = sys.argv[1:]
    print(json.dumps({"architecture": about_the_architecture(root, architecture), "metric": about_the_metric(metric)}))
