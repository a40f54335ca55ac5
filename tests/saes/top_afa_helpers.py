"""Small top-AFA SAEs and single training steps, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_lens_afa import TopAFASAE, TopAFATrainingSAE, TopAFATrainingSAEConfig

D_IN, D_SAE = 12, 40


def build(**overrides) -> TopAFATrainingSAE:
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, **overrides}))
    sae.b_dec.data.normal_(std=0.1)
    return sae


def to_inference(sae: TopAFATrainingSAE, path: Path) -> TopAFASAE:
    sae.save_inference_model(path)
    return SAE.load_from_disk(path)


def step(sae: TrainingSAE, x: Tensor, dead: Tensor | None = None, *, logging: bool = False, **coefficients: float):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=coefficients or {"afa": sae.cfg.afa_coefficient},
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=logging,
        )
    )


def train(sae: TopAFATrainingSAE, x: Tensor, n_steps: int, optimizer: torch.optim.Optimizer) -> TrainStepOutput:
    for _ in range(n_steps):
        sae.train()
        out = step(sae, x)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return out


class LossOnly(torch.nn.Module):
    def __init__(self, sae: TopAFATrainingSAE, dead: Tensor) -> None:
        super().__init__()
        self.sae, self.dead = sae, dead

    def forward(self, x: Tensor) -> Tensor:
        return step(self.sae, x, self.dead).loss
