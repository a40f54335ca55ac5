"""Files of an SAE as they go to the Hub: in inference form, checked, without what belongs to one computer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import SAE, TrainingSAE
from safetensors import safe_open

from sae_lens_afa.evals.result import FORMAT_VERSION, AFAResult
from sae_lens_afa.files import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens_afa.hub._contents import METRICS_FILENAME, PLOT_FILENAME, is_number
from sae_lens_afa.loading import sae_folder
from sae_lens_afa.loading.saes import load_checkpoint

# Settings of the runner that name paths and accounts of the computer that trained.
_PRIVATE = (
    "checkpoint_path", "output_path", "resume_from_checkpoint", "cached_activations_path", "from_pretrained_path",
    "logger",
)  # fmt: skip
Metrics = AFAResult | Mapping[str, Any]


def check_source(source: Any, where: str) -> None:
    """Refuse, before any work, what is not an SAE or the folder of one.

    Raises:
        TypeError: neither an SAE nor a path.
        FileNotFoundError, ValueError: the folder holds no SAE, or config and weights disagree.
    """
    if isinstance(source, SAE):
        _check_folded(source, where)
        return
    if not isinstance(source, (str, Path)):
        raise TypeError(f"{where} must be an SAE or the folder of one, got a {type(source).__name__}.")
    folder = Path(source)
    cfg = sae_folder.read_config(folder / SAE_CFG_FILENAME, f"{where} ({folder})")
    training = sae_folder.is_training_form(cfg)
    sae_folder.check_architecture(cfg, f"{where} ({folder})", training=training)
    header = sae_folder.read_header(folder / SAE_WEIGHTS_FILENAME, f"{where} ({folder})")
    if not training:
        sae_folder.check_fit(cfg, header, f"{where} ({folder})")


def check_metrics(metrics: Mapping[Any, Any], where: str) -> None:
    """Raise TypeError or ValueError unless they are values by name that JSON can hold."""
    for name, value in metrics.items():
        if not isinstance(name, str) or not (value is None or isinstance(value, str) or is_number(value)):
            raise ValueError(f"metrics of {where}: {name!r} must be a finite number, a text or None, got {value!r}.")


def bundle(source: SAE[Any] | str | Path, folder: Path, where: str, metrics: Metrics | None, *, plot: bool) -> None:
    """Write an SAE's files into a new folder.

    Raises:
        ValueError: weights that are not finite, or a scaling of the input that is not folded into them.
    """
    folder.mkdir(parents=True)
    if isinstance(source, SAE):
        _save_for_inference(source, folder)
    else:
        _copy(Path(source), folder, where)
    _check_finite(folder / SAE_WEIGHTS_FILENAME, where)
    if metrics is None:
        return
    values = metrics.to_dict() if isinstance(metrics, AFAResult) else dict(metrics)
    text = json.dumps({"version": FORMAT_VERSION, **values}, indent=2, allow_nan=False)
    (folder / METRICS_FILENAME).write_text(text + "\n")
    if plot and isinstance(metrics, AFAResult) and metrics.tokens is not None:
        from sae_lens_afa.plots import zf_plot

        zf_plot(metrics, title=where, save=folder / PLOT_FILENAME)


def _copy(source: Path, folder: Path, where: str) -> None:
    cfg = sae_folder.read_config(source / SAE_CFG_FILENAME, where)
    if sae_folder.is_training_form(cfg):
        sae = load_checkpoint(source, where=where)
        _check_folded(sae, where)
        _save_for_inference(sae, folder)
    else:
        for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
            shutil.copyfile(source / name, folder / name)
    if (source / SPARSITY_FILENAME).is_file():
        shutil.copyfile(source / SPARSITY_FILENAME, folder / SPARSITY_FILENAME)
    if (source / RUNNER_CFG_FILENAME).is_file():
        settings = json.loads((source / RUNNER_CFG_FILENAME).read_text())
        kept = {name: value for name, value in settings.items() if name not in _PRIVATE}
        (folder / RUNNER_CFG_FILENAME).write_text(json.dumps(kept, indent=2) + "\n")


def _save_for_inference(sae: SAE[Any], folder: Path) -> None:
    if isinstance(sae, TrainingSAE):
        sae.save_inference_model(folder)
    else:
        sae.save_model(folder)


def _check_folded(sae: SAE[Any], where: str) -> None:
    if sae.cfg.normalize_activations == "expected_average_only_in":
        raise ValueError(
            f"{where} scales its input by a factor that is not in its weights"
            " (normalize_activations='expected_average_only_in'): call its"
            " fold_activation_norm_scaling_factor(factor) first, as SAELens' trainer does when it ends."
        )


def _check_finite(weights: Path, where: str) -> None:
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            if not torch.isfinite(file.get_tensor(name)).all():
                raise ValueError(f"{where}: {name} has values that are not finite; it is not pushed.")
