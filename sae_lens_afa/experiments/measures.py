"""Measurements of a trained SAE on activations that it did not see."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.evals import evaluate_activations
from sae_lens_afa.evals.metric_list import SWEEPS, metrics_shown_in

VALUE_BITS = 7
_BATCH = 4096


def mdl_bits(l0: float, d_sae: int, value_bits: float = VALUE_BITS) -> float:
    """Return the description length of a token's code: which features are active, and their values.

    L0 * (value_bits + log2 d_sae), as in arXiv 2410.11179: 1404.63 for L0 = 65 of 25,000 features. What the code
    leaves out of the activation is not in it.

    Raises:
        ValueError: `d_sae` below 1.
    """
    if d_sae < 1:
        raise ValueError(f"d_sae must be at least 1, got {d_sae}.")
    return l0 * (value_bits + math.log2(d_sae))


def inference_sae(sae: TrainingSAE[Any], *, standardise: bool = False, device: str = "cpu") -> SAE[Any]:
    """Return an SAE as it is when saved and loaded: with its threshold instead of a choice over the batch.

    Args:
        sae: A trained SAE.
        standardise: It was trained on standardised activations: have it standardise raw ones itself (SAELens'
            "layer_norm").
        device: Where it is to be.
    """
    with tempfile.TemporaryDirectory() as folder:
        _, path = sae.save_inference_model(folder)
        if standardise:
            path.write_text(json.dumps({**json.loads(path.read_text()), "normalize_activations": "layer_norm"}))
        return SAE.load_from_disk(folder, device=device)


def standardised(activations: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_in"]:
    """Return each token minus its mean, over its standard deviation: as SAELens' "layer_norm" does it."""
    centred = activations - activations.mean(-1, keepdim=True)
    return centred / (centred.std(-1, keepdim=True) + 1e-5)


@dataclass
class Centred(ActivationScaler):
    """Activations less the mean token of a text, in the place of SAELens' scaling.

    Attributes:
        mean: [d_in].
    """

    mean: Tensor | None = None

    @override
    def scale(self, acts: Tensor) -> Tensor:
        return acts if self.mean is None else acts - self.mean.to(acts)

    @override
    def unscale(self, acts: Tensor) -> Tensor:
        return acts if self.mean is None else acts + self.mean.to(acts)

    def standardised(self, activations: Tensor) -> Tensor:
        """Return raw activations [..., d_in] in the space in which SAEs are compared."""
        return standardised(self.scale(activations))


def measure(sae: SAE[Any], activations: Float[Tensor, "tokens d_in"]) -> dict[str, float]:
    """Return the metrics of an SAE on activations: `AFAResult`'s that sweeps show, and those of `code_metrics`.

    What is not defined is left out. Tokens with a NaN or an infinity, in themselves or in what the SAE makes of them,
    are in no metric but `n_nonfinite`, which is there if there are any.

    Raises:
        ValueError: no token is left.
    """
    own = code_metrics(sae, activations)
    found = evaluate_activations(sae, activations, batch_size=_BATCH).to_dict()
    shared = {
        metric.name: value
        for metric in metrics_shown_in(SWEEPS)
        if (value := found.get(metric.name)) is not None and (value or not metric.only_if_any)
    }
    return {**shared, "mdl_bits": mdl_bits(shared["l0_mean"], sae.cfg.d_sae), **own}


@torch.no_grad()
def code_metrics(sae: SAE[Any], activations: Float[Tensor, "tokens d_in"]) -> dict[str, float]:
    """Return squared error, dead latents and shrinkage, in the space of the activations.

    `mse` is the mean over tokens and dimensions, `dead_latents` those that no token activates, `shrinkage` the mean of
    ||x^|| / ||x|| over tokens with ||x|| > 1e-6 (SAELens' definition).

    Raises:
        ValueError: no token is finite, in itself and in what the SAE makes of it.
    """
    error = shrinkage = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    n = n_nonzero = 0
    for rows in activations.split(_BATCH):
        rows = rows.to(sae.device)
        acts = sae.encode(rows)
        recons = sae.decode(acts)
        acts = acts.to_dense() if acts.is_sparse else acts
        finite = torch.stack([part.isfinite().all(-1) for part in (rows, acts, recons)]).all(0)
        rows, acts, recons = rows[finite], acts[finite], recons[finite]
        fired |= (acts != 0).any(0)
        error += float((rows - recons).double().square().sum())
        norms = torch.linalg.vector_norm(rows, dim=-1)
        ratios = (torch.linalg.vector_norm(recons, dim=-1) / norms)[norms > 1e-6]
        shrinkage += float(ratios.double().sum())
        n_nonzero += len(ratios)
        n += len(rows)
    if n == 0:
        why = f"all {len(activations)} hold a NaN or an infinity" if len(activations) else "none given"
        raise ValueError(f"no tokens to judge: {why}.")
    metrics = {"mse": error / (n * activations.shape[-1]), "dead_latents": int((~fired).sum())}
    return {**metrics, "shrinkage": shrinkage / n_nonzero} if n_nonzero else metrics
