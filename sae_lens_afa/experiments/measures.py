"""What is measured of a trained SAE on activations that it did not see."""

from __future__ import annotations

import json
import math
import tempfile
from typing import Any

import torch
from sae_lens.saes.sae import SAE, TrainingSAE
from torch import Tensor

from sae_lens_afa.evals import AFAResult, evaluate_activations

VALUE_BITS = 7
_BATCH = 4096
_AFA_FIGURES = {
    "norm_ratio": "norm_ratio_median",
    "activation_ratio": "activation_ratio_median",
    "reconstruction_ratio": "reconstruction_ratio_median",
    "epsilon_lbo": "epsilon_lbo_median",
    "frac_over_activated": "frac_over_activated",
    "l0_q05": "l0_q05",
    "l0_q95": "l0_q95",
}


def mdl_bits(l0: float, d_sae: int, value_bits: float = VALUE_BITS) -> float:
    """Description length of a token's code: which features are active, and their values.

    L0 * (value_bits + log2 d_sae), as in arXiv 2410.11179: 1404.63 for L0 = 65 of 25,000 features. What the code
    leaves out of the activation is not in it.

    Raises:
        ValueError: `d_sae` below 1.
    """
    if d_sae < 1:
        raise ValueError(f"d_sae must be at least 1, got {d_sae}.")
    return l0 * (value_bits + math.log2(d_sae))


def inference_sae(sae: TrainingSAE[Any], *, standardise: bool = False, device: str = "cpu") -> SAE[Any]:
    """The SAE as it is when saved and loaded: with its threshold instead of a choice over the batch.

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


def standardised(activations: Tensor) -> Tensor:
    """Each token [..., d_in] minus its mean, over its standard deviation: as SAELens' "layer_norm" does it."""
    centred = activations - activations.mean(-1, keepdim=True)
    return centred / (centred.std(-1, keepdim=True) + 1e-5)


@torch.no_grad()
def reconstruction_figures(sae: SAE[Any], activations: Tensor) -> dict[str, float | None]:
    """L0, squared error, explained variance, dead latents and shrinkage on `activations` [tokens, d_in].

    All in the space of `activations`. `mse` is the mean over tokens and dimensions, `explained_variance`
    1 - sum ||x - x^||^2 / sum ||x - mean x||^2, `dead_latents` those that no token activates, `shrinkage` the mean of
    ||x^|| / ||x|| over tokens with ||x|| > 1e-6 (SAELens' definition). Where tokens, or what the SAE makes of them,
    hold a NaN or an infinity, `n_nonfinite` says how many, and they are in no other figure.

    Raises:
        ValueError: no token is left.
    """
    error = shrinkage = active = deviation = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    counted = n = n_nonfinite = 0
    mean = torch.zeros(activations.shape[-1], dtype=torch.float64, device=sae.device)
    for rows in activations.split(_BATCH):
        rows = rows.to(sae.device)
        acts = sae.encode(rows)
        recons = sae.decode(acts)
        acts = acts.to_dense() if acts.is_sparse else acts
        finite = torch.stack([part.isfinite().all(-1) for part in (rows, acts, recons)]).all(0)
        if not finite.all():
            n_nonfinite += int((~finite).sum())
            rows, acts, recons = rows[finite], acts[finite], recons[finite]
        if len(rows) == 0:
            continue
        fired |= (acts != 0).any(0)
        active += int(torch.count_nonzero(acts))
        error += float((rows - recons).double().square().sum())
        norms = torch.linalg.vector_norm(rows, dim=-1)
        ratios = (torch.linalg.vector_norm(recons, dim=-1) / norms)[norms > 1e-6]
        shrinkage += float(ratios.double().sum())
        counted += len(ratios)
        # Batch by batch, without cancellation (Chan et al., 1983).
        own = rows.double().mean(0)
        deviation += float((rows.double() - own).square().sum())
        deviation += float((own - mean).square().sum()) * n * len(rows) / (n + len(rows))
        mean += (own - mean) * len(rows) / (n + len(rows))
        n += len(rows)
    if n == 0:
        why = f"all {n_nonfinite} hold a NaN or an infinity" if n_nonfinite else "none given"
        raise ValueError(f"no tokens to judge: {why}.")
    l0 = active / n
    figures = {
        "l0": l0,
        "mdl_bits": mdl_bits(l0, sae.cfg.d_sae),
        "mse": error / (n * activations.shape[-1]),
        "explained_variance": 1 - error / deviation if deviation > 0 else None,
        "dead_latents": int((~fired).sum()),
        "shrinkage": shrinkage / counted if counted else None,
    }
    return {**figures, "n_nonfinite": n_nonfinite} if n_nonfinite else figures


def afa_figures(sae: SAE[Any], activations: Tensor) -> dict[str, float | None]:
    """AFA figures (the paper's form, medians) in the space in which the SAE decodes."""
    result: AFAResult = evaluate_activations(sae, activations, batch_size=_BATCH)
    return {name: getattr(result, source) for name, source in _AFA_FIGURES.items()}
