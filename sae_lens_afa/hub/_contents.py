"""Facts that an SAE's folder states: configuration, training settings, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypeIs

from sae_lens_afa.evals.metric_list import CARD, Metric, metrics_shown_in
from sae_lens_afa.files import (
    FEATURES_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    read_object,
)
from sae_lens_afa.hub._remote import Snapshot, fetch, in_folder
from sae_lens_afa.loading import sae_folder

METRICS_FILENAME = "afa_metrics.json"
PLOT_FILENAME = "zf_plot.png"
# Files of an SAE's folder that are pushed and pulled.
FILENAMES = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    RUNNER_CFG_FILENAME,
    METRICS_FILENAME,
    PLOT_FILENAME,
    FEATURES_FILENAME,
)
_SETTINGS = {
    "training_tokens": "tokens",
    "train_batch_size_tokens": "batch (tokens)",
    "lr": "learning rate",
    "lr_scheduler_name": "schedule",
    "seed": "seed",
}


@dataclass(frozen=True)
class SAEFacts:
    """Files of one SAE, as far as they say something of it.

    Attributes:
        cfg: cfg.json.
        runner: runner_cfg.json; empty where there is none.
        metrics: Metrics by name, as in `AFAResult.to_dict`; empty where there are none.
        has_plot: True where its ZF plot is there.
        has_page: True where the page of its features is there.
    """

    cfg: Mapping[str, Any]
    runner: Mapping[str, Any]
    metrics: Mapping[str, Any]
    has_plot: bool = False
    has_page: bool = False

    def metadata(self, name: str) -> Any:
        """Return a field of the SAE's metadata; None if it is not there."""
        value = self.cfg.get("metadata")
        return value.get(name) if isinstance(value, Mapping) else self.cfg.get(name)

    def completed_by(self, other: SAEFacts) -> SAEFacts:
        """Return these facts, with those that only another source of the same SAE has."""
        return SAEFacts(
            self.cfg, self.runner or other.runner, self.metrics or other.metrics, self.has_plot or other.has_plot,
            self.has_page or other.has_page,
        )  # fmt: skip

    def describe(self) -> dict[str, str]:
        """Return what it codes and how large it is, by label."""
        said = {
            "architecture": self.cfg.get("architecture"),
            "model": short_name(self.metadata("model_name")),
            "hook": self.metadata("hook_name"),
            "d_in": self.cfg.get("d_in"),
            "d_sae": self.cfg.get("d_sae"),
            "dtype": self.cfg.get("dtype"),
        }
        return {name: str(value) for name, value in said.items() if value is not None}

    def settings(self) -> dict[str, str]:
        """Return how it was trained, as far as its files say, by label."""
        trained_as = self.metadata("training_architecture")
        said: dict[str, Any] = {} if trained_as in (None, self.cfg.get("architecture")) else {"trained as": trained_as}
        said |= {label: self.runner.get(name) for name, label in _SETTINGS.items()}
        said["dataset"] = short_name(self.metadata("dataset_path"))
        said["context"] = self.metadata("context_size")
        said |= self.metadata("training_architecture_details") or {}
        versions = self.metadata("package_versions") or {"sae-lens": self.metadata("sae_lens_training_version")}
        said["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None
        return {name: _plain(value) for name, value in said.items() if value is not None}

    def measured(self) -> list[tuple[Metric, float]]:
        """Return the metrics for cards that are known and worth showing, with their values."""
        values = ((metric, self.metrics.get(metric.name)) for metric in metrics_shown_in(CARD))
        return [(metric, value) for metric, value in values if is_number(value) and (value or not metric.only_if_any)]

    def headlines(self) -> dict[str, str]:
        """Return the same metrics by heading, as text."""
        return {
            metric.heading: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            for metric, value in self.measured()
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return all of it as labels and texts."""
        return [*self.describe().items(), *self.headlines().items(), *self.settings().items()]


def read_facts(folder: Path, where: str) -> SAEFacts:
    """Read the facts in a local folder.

    Raises:
        FileNotFoundError, ValueError: the config is missing, or a file is not JSON.
    """
    return SAEFacts(
        sae_folder.read_config(folder / SAE_CFG_FILENAME, where),
        _read_object(folder / RUNNER_CFG_FILENAME, where),
        {name: v for name, v in _read_object(folder / METRICS_FILENAME, where).items() if name != "version"},
        (folder / PLOT_FILENAME).is_file(),
        (folder / FEATURES_FILENAME).is_file(),
    )


def remote_facts(snapshot: Snapshot, sae_id: str) -> SAEFacts:
    """Read the facts in a repository, from its small files.

    Raises:
        HubError: a file cannot be downloaded.
        ValueError: a file is not JSON.
    """
    cfg = fetch(snapshot, in_folder(sae_id, SAE_CFG_FILENAME))
    for name in (RUNNER_CFG_FILENAME, METRICS_FILENAME):
        if in_folder(sae_id, name) in snapshot.files:
            fetch(snapshot, in_folder(sae_id, name))
    facts = read_facts(cfg.parent, f"{sae_id} of {snapshot.repo_id}")
    plot, page = (in_folder(sae_id, name) in snapshot.files for name in (PLOT_FILENAME, FEATURES_FILENAME))
    return SAEFacts(facts.cfg, facts.runner, facts.metrics, plot, page)


def short_name(name: Any) -> str | None:
    """Return a Hub id or a name as it is; of a local path its last part, which says nothing about a computer."""
    if not isinstance(name, str) or not name:
        return None
    is_local = name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_local else name


def is_number(value: Any) -> TypeIs[float]:
    """Say whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _read_object(path: Path, where: str) -> dict[str, Any]:
    return read_object(path, where) if path.is_file() else {}
