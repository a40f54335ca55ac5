"""A small SAE of every architecture of the list, and its training steps, for tests that ask the same of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_lens_afa.architectures import ARCHITECTURES

D_IN, D_SAE = 12, 40
TRAINING = [entry.name for entry in ARCHITECTURES]
INFERENCE = [f"inference {entry.name}" for entry in ARCHITECTURES if not entry.saved_as]
KINDS = TRAINING + INFERENCE


def config_class(kind: str) -> Any:
    get = get_sae_class if kind.startswith("inference") else get_sae_training_class
    return get(kind.split()[-1])[1]


def build(kind: str, **overrides: Any) -> Any:
    """The training SAE of an architecture, or the inference SAE of "inference <architecture>", with a bias."""
    get = get_sae_class if kind.startswith("inference") else get_sae_training_class
    sae_class, cfg_class = get(kind.split()[-1])
    settings = {"d_in": D_IN, "d_sae": D_SAE, **overrides}
    if "k" in cfg_class.__dataclass_fields__:
        settings.setdefault("k", min(6, settings["d_sae"]))
    sae = sae_class(cfg_class(**settings))
    if sae.device.type != "meta":
        sae.b_dec.data.normal_(std=0.1)
    return sae


def step(sae: TrainingSAE[Any], x: Tensor, *, n: int = 1, logging: bool = False) -> TrainStepOutput:
    """Step `n` of training, with all coefficients at 1."""
    coefficients = dict.fromkeys(sae.get_coefficients(), 1.0)
    return sae.training_forward_pass(TrainStepInput(x, coefficients, None, n, logging))


def to_inference(sae: TrainingSAE[Any], path: Path) -> SAE[Any]:
    sae.save_inference_model(path)
    return SAE.load_from_disk(path)
