"""Small afa_threshold SAEs and single training steps, for the tests of this folder."""

from __future__ import annotations

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_lens_afa import AFAThresholdTrainingSAE, AFAThresholdTrainingSAEConfig

# So wide that the threshold, sqrt(2 ln 40 / 24) = 0.55 of the norm, leaves some features and takes others.
D_IN, D_SAE = 24, 40
PLAIN = {"d_in": D_IN, "d_sae": D_SAE, "threshold_scale": 1.0, "normalize_activations": "none"}


def true_directions() -> Tensor:
    """What `tokens` are made of, [D_SAE, D_IN]."""
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=-1)


def build(**overrides) -> AFAThresholdTrainingSAE:
    """One whose features are the directions of `tokens`, with a bias."""
    given = {**PLAIN, **overrides}
    sae = AFAThresholdTrainingSAE(AFAThresholdTrainingSAEConfig(**given))
    directions = true_directions()[: sae.cfg.d_sae].to(sae.dtype)
    sae.W_dec.data, sae.W_enc.data = directions, directions.T.clone(memory_format=torch.contiguous_format)
    sae.b_dec.data.normal_(std=0.1)
    return sae


def tokens(*leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Activations with a few strong features each, and noise."""
    amounts = torch.rand(*leading, D_SAE) * (torch.rand(*leading, D_SAE) < 0.1)
    return (3 * amounts @ true_directions() + 0.1 * torch.randn(*leading, D_IN)).to(dtype)


def step(
    sae: AFAThresholdTrainingSAE,
    x: Tensor,
    dead: Tensor | None = None,
    *,
    progress: float = 1.0,
    n: int = 1,
    logging: bool = False,
) -> TrainStepOutput:
    """Step `n` of training: by default one past the first, in which a run may start from its data."""
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={"threshold": progress},
            dead_neuron_mask=dead,
            n_training_steps=n,
            is_logging_step=logging,
        )
    )
