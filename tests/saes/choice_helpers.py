"""Small Mutual Choice and Feature Choice SAEs and their training steps, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

D_IN, D_SAE = 12, 40
# Every way in which the two share out a batch.
VARIANTS: dict[str, dict[str, Any]] = {
    "mutual_choice": {},
    "feature_choice": {},
    "feature_choice zipf": {"prior": "zipf", "zipf_exponent": 1.0},
    "feature_choice late": {"prior": "zipf", "feature_choice_start_step": 3},
}


def build(variant: str, **overrides: Any) -> Any:
    sae_class, config_class = get_sae_training_class(variant.split()[0])
    settings = {"d_in": D_IN, "d_sae": D_SAE, "k": 4, **VARIANTS[variant], **overrides}
    sae = sae_class(config_class(**settings))
    sae.b_dec.data.normal_(std=0.1)
    sae.b_enc.data.normal_(std=0.1)
    return sae


def step(sae: TrainingSAE, x: Tensor, at: int = 0, dead: Tensor | None = None) -> TrainStepOutput:
    return sae.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=at, is_logging_step=False)
    )


def train(
    sae: TrainingSAE, batches: Iterable[Tensor], optimizer: torch.optim.Optimizer | None = None, start: int = 0
) -> TrainStepOutput:
    """Train on each batch; without an optimizer the weights stay as they are and only what is tracked moves."""
    for at, x in enumerate(batches, start):
        out = step(sae, x, at)
        if optimizer is not None:
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return out


def to_inference(sae: TrainingSAE, path: Path) -> SAE:
    sae.save_inference_model(path)
    return SAE.load_from_disk(path)


def l0(acts: Tensor) -> float:
    return (acts > 0).sum(-1).float().mean().item()
