"""Cases that are measured: inputs whose number of active features is set, SAEs of the same size, one training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.sae import SAE, TrainCoefficientConfig, TrainingSAE, TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from torch import Tensor

from sae_lens_afa import (
    AFAPursuitTrainingSAE,
    AFAPursuitTrainingSAEConfig,
    AFAThresholdTrainingSAE,
    AFAThresholdTrainingSAEConfig,
    TopAFATrainingSAE,
    TopAFATrainingSAEConfig,
)

K = 64
# Share of positive pre-activations, and how many of 12288 are selected.
REGIMES = ((0.5, 30), (0.5, 300), (0.5, 2000), (0.5, 5000), (0.1, 30), (0.1, 300))


def regimes(d_sae: int) -> list[tuple[float, int]]:
    """Return shares of positive pre-activations and how many are selected, in proportion to `d_sae`."""
    return [(positive, max(1, l0 * d_sae // 12288)) for positive, l0 in REGIMES]


def selection_inputs(
    rows: int, d_sae: int, positive: float, l0: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Gaussian pre-activations (`positive` of them are), targets that select `l0`, decoder norms near 1."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(positive))
    acts = torch.randn(rows, d_sae, generator=generator) + shift
    decoder_norm = 1 + 0.05 * torch.rand(d_sae, generator=generator)
    largest = (acts.relu() * decoder_norm).topk(l0, dim=-1, sorted=False).values
    return acts.to(device), largest.double().norm(dim=-1).to(device), decoder_norm.to(device)


def top_afa(d_in: int, d_sae: int, l0: float, x: Tensor) -> TopAFATrainingSAE:
    """Return a top-AFA SAE whose encoder is scaled so that about `l0` features are active on `x`."""
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=d_in, d_sae=d_sae, device=str(x.device)))
    direction, low, high = sae.W_dec.data.T.contiguous(), 1e-3, 1e1
    for _ in range(14):
        scale = (low * high) ** 0.5  # the stronger the encoder, the fewer reach the norm
        sae.W_enc.data = direction * scale
        with torch.no_grad():
            found = (sae.encode(x[:64]) > 0).sum(-1).float().mean().item()
        low, high = (scale, high) if found > l0 else (low, scale)
    return sae.train()


def afa_threshold(d_in: int, d_sae: int, l0: float, device: str) -> AFAThresholdTrainingSAE:
    """Return one whose threshold leaves about `l0` features active on Gaussian activations, all interference."""
    standard_deviations = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - l0 / d_sae)).item()
    scale = max(standard_deviations, 0.01) / math.sqrt(2 * math.log(d_sae))
    return AFAThresholdTrainingSAE(
        AFAThresholdTrainingSAEConfig(d_in=d_in, d_sae=d_sae, threshold_scale=scale, threshold_start=0.0, device=device)
    ).train()


def afa_pursuit(d_in: int, d_sae: int, device: str) -> AFAPursuitTrainingSAE:
    """Return one with all its latents; tokens for it are those of `tokens_of_features`."""
    cfg = AFAPursuitTrainingSAEConfig(d_in=d_in, d_sae=d_sae, growth_steps=0, device=device)
    return AFAPursuitTrainingSAE(cfg).train()


def tokens_of_features(sae: SAE[Any], tokens: int, l0: int) -> Tensor:
    """Return tokens of `l0` features of a dictionary each, by values from 0.5 to 1.5, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    W_dec = sae.W_dec.detach().cpu()
    chosen = torch.rand(tokens, len(W_dec), generator=generator).topk(min(l0, len(W_dec)), dim=-1).indices
    values = 0.5 + torch.rand(chosen.shape, generator=generator)
    x = torch.stack([each @ W_dec[features] for each, features in zip(values, chosen, strict=True)])
    noise = torch.randn(x.shape, generator=generator) * x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[1])
    return (x + 0.1 * noise).to(sae.W_dec.device)


def matching_pursuit(sae: AFAPursuitTrainingSAE, iterations: int) -> MatchingPursuitSAE:
    """Return SAELens' own of the same dictionary, with so many iterations."""
    cfg = MatchingPursuitSAEConfig(
        d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, max_iterations=iterations, device=sae.cfg.device
    )
    plain = MatchingPursuitSAE(cfg)
    plain.load_state_dict({"W_dec": sae.W_dec.data, "b_dec": sae.b_dec.data})
    return plain.eval()


def relu(d_in: int, d_sae: int, device: str) -> StandardTrainingSAE:
    """Return SAELens' own, with its defaults."""
    return StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, device=device)).train()


def topk(d_in: int, d_sae: int, device: str) -> TopKTrainingSAE:
    """Return SAELens' own, with its defaults."""
    return TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=K, device=device)).train()


def peers(d_in: int, d_sae: int, device: str) -> dict[str, TrainingSAE[Any]]:
    """Return SAELens' own, with their defaults."""
    size = {"d_in": d_in, "d_sae": d_sae, "device": device}
    return {
        "topk": topk(**size),
        "batchtopk": BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=K)).train(),
        "jumprelu": JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**size)).train(),
    }


def inference_peers(d_in: int, d_sae: int, device: str) -> dict[str, SAE[Any]]:
    """Return SAELens' own after training; BatchTopK is saved as JumpReLU."""
    size = {"d_in": d_in, "d_sae": d_sae, "device": device}
    return {"topk": TopKSAE(TopKSAEConfig(**size, k=K)), "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**size))}


def train_step(sae: TrainingSAE[Any], x: Tensor) -> Callable[[], None]:
    """Return forward and backward of a later step as SAELens' trainer calls them, without optimizer; none is dead."""
    coefficients = {
        name: value.value if isinstance(value, TrainCoefficientConfig) else value
        for name, value in sae.get_coefficients().items()
    }
    dead = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=x.device)

    def step() -> None:
        sae.zero_grad(set_to_none=True)
        out = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients=coefficients,
                dead_neuron_mask=dead,
                n_training_steps=1,
                is_logging_step=False,
            )
        )
        out.loss.backward()

    return step
