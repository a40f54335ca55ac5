"""What a repository says of each SAE, as it stands in the SAE's folder: configuration, training settings, figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_afa.files import (
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
# Of an SAE's folder, what is pushed and pulled.
FILENAMES = (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    RUNNER_CFG_FILENAME,
    METRICS_FILENAME,
    PLOT_FILENAME,
)
_SETTINGS = {
    "training_tokens": "tokens",
    "train_batch_size_tokens": "batch (tokens)",
    "lr": "learning rate",
    "lr_scheduler_name": "schedule",
    "seed": "seed",
}
# In the order of the card's columns and of `info`.
FIGURES = {
    "l0_mean": "L0",
    "explained_variance": "explained variance",
    "ce_loss_score": "CE score",
    "epsilon_lbo_median": "eps-LBO (median)",
    "norm_ratio_median": "‖f‖ / ‖z‖ (median)",
    "frac_over_activated": "over-activated",
    "n_nonfinite": "tokens left out (NaN, infinity)",
}


@dataclass(frozen=True)
class SAEFacts:
    """Of one SAE.

    Attributes:
        cfg: cfg.json.
        runner: runner_cfg.json; empty where there is none.
        metrics: Figures by name, as in `AFAResult.to_dict`; empty where there are none.
        has_plot: Whether its ZF plot is there.
    """

    cfg: Mapping[str, Any]
    runner: Mapping[str, Any]
    metrics: Mapping[str, Any]
    has_plot: bool = False

    def metadata(self, name: str) -> Any:
        """A field of the SAE's metadata; None if it is not there."""
        value = self.cfg.get("metadata")
        return value.get(name) if isinstance(value, Mapping) else self.cfg.get(name)

    def completed_by(self, other: SAEFacts) -> SAEFacts:
        """These facts, and what only another source of the same SAE knows."""
        return SAEFacts(
            self.cfg, self.runner or other.runner, self.metrics or other.metrics, self.has_plot or other.has_plot
        )

    def describe(self) -> dict[str, str]:
        """What it codes and how large it is."""
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
        """How it was trained, as far as its files say."""
        trained_as = self.metadata("training_architecture")
        said: dict[str, Any] = {} if trained_as in (None, self.cfg.get("architecture")) else {"trained as": trained_as}
        said |= {label: self.runner.get(name) for name, label in _SETTINGS.items()}
        said["dataset"] = short_name(self.metadata("dataset_path"))
        said["context"] = self.metadata("context_size")
        said |= self.metadata("training_architecture_details") or {}
        versions = self.metadata("package_versions") or {"sae-lens": self.metadata("sae_lens_training_version")}
        said["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None
        return {name: _plain(value) for name, value in said.items() if value is not None}

    def measured(self) -> dict[str, float]:
        """The headline figures by their name in `FIGURES`; of tokens that were left out, only if there were any."""
        known = {name: self.metrics[name] for name in FIGURES if is_number(self.metrics.get(name))}
        return {name: value for name, value in known.items() if name != "n_nonfinite" or value}

    def figures(self) -> dict[str, str]:
        """The headline figures as they are shown."""
        return {
            FIGURES[name]: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            for name, value in self.measured().items()
        }

    def rows(self) -> list[tuple[str, str]]:
        """All of it, by name."""
        return [*self.describe().items(), *self.figures().items(), *self.settings().items()]


def read_facts(folder: Path, where: str) -> SAEFacts:
    """From a local folder.

    Raises:
        FileNotFoundError, ValueError: the config is missing, or a file is not JSON.
    """
    return SAEFacts(
        sae_folder.read_config(folder / SAE_CFG_FILENAME, where),
        _read_object(folder / RUNNER_CFG_FILENAME, where),
        {name: v for name, v in _read_object(folder / METRICS_FILENAME, where).items() if name != "version"},
        (folder / PLOT_FILENAME).is_file(),
    )


def remote_facts(snapshot: Snapshot, sae_id: str) -> SAEFacts:
    """From the Hub, by its small files.

    Raises:
        HubError: a file cannot be downloaded.
        ValueError: a file is not JSON.
    """
    cfg = fetch(snapshot, in_folder(sae_id, SAE_CFG_FILENAME))
    for name in (RUNNER_CFG_FILENAME, METRICS_FILENAME):
        if in_folder(sae_id, name) in snapshot.files:
            fetch(snapshot, in_folder(sae_id, name))
    facts = read_facts(cfg.parent, f"{sae_id} of {snapshot.repo_id}")
    return SAEFacts(facts.cfg, facts.runner, facts.metrics, in_folder(sae_id, PLOT_FILENAME) in snapshot.files)


def short_name(name: Any) -> str | None:
    """A Hub id or a name as it is; of a local path only its last part, which says nothing about a computer."""
    if not isinstance(name, str) or not name:
        return None
    is_local = name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_local else name


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _read_object(path: Path, where: str) -> dict[str, Any]:
    return read_object(path, where) if path.is_file() else {}
