"""A stand-in and its original on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

from sae_lens_afa.evals.attached import saes_detached
from sae_lens_afa.evals.cross_entropy import CrossEntropy
from sae_lens_afa.evals.judged_tokens import excluded_ids
from sae_lens_afa.evals.metrics import AFAMetrics
from sae_lens_afa.evals.sae_space import CodedTokens, SAESpace

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


@torch.no_grad()
def compare(
    original: SAE[Any], export: SAE[Any], batches: Iterable[Float[Tensor, "tokens d_in"]]
) -> dict[str, float | int | None]:
    """Measure what a `JumpReLUReport` says of activations alone.

    Tokens of which either SAE makes a NaN or an infinity are counted apart, and in no other metric.

    Args:
        original: The SAE that is stood for.
        export: The SAE that stands for it.
        batches: Raw activations, as `SAESpace.rows` gives them.

    Raises:
        ValueError: no token is left.
    """
    spaces = {"original": SAESpace(original), "export": SAESpace(export)}
    metrics = {name: AFAMetrics(space.d_sae) for name, space in spaces.items()}
    n, n_nonfinite, jaccard = 0, 0, 0.0
    shared = {"both": 0, "original": 0, "export": 0}
    for rows in batches:
        coded = {name: _dense(space.code(rows)) for name, space in spaces.items()}
        # In a narrow dtype sums overflow; a NaN would count as an active feature.
        finite = torch.stack([part.isfinite().all(-1) for each in coded.values() for part in each[:3]]).all(0)
        n_nonfinite += int((~finite).sum())
        if not finite.any():
            continue
        active: dict[str, Tensor] = {}
        for name, space in spaces.items():
            dense, acts, recons = (part[finite] for part in coded[name][:3])
            metrics[name].update(dense, acts, space.sae.W_dec, space.b_dec, recons)
            active[name] = acts > 0
        both = (active["original"] & active["export"]).sum(-1)
        either = (active["original"] | active["export"]).sum(-1)
        n += len(both)
        jaccard += float(torch.where(either == 0, 1.0, both / either).cpu().double().sum())
        shared["both"] += int(both.sum())
        for name, mask in active.items():
            shared[name] += int(mask.sum())
    if n == 0:
        raise ValueError(f"no tokens to judge: of all {n_nonfinite} the SAEs make a NaN or an infinity.")
    results = {name: each.compute() for name, each in metrics.items()}
    return {
        "n_evaluation_tokens": n,
        "n_nonfinite": n_nonfinite,
        **{f"l0_{name}": shared[name] / n for name in spaces},
        **{f"explained_variance_{name}": result.explained_variance for name, result in results.items()},
        "jaccard": jaccard / n,
        "precision": _part(shared["both"], shared["export"]),
        "recall": _part(shared["both"], shared["original"]),
    }


def _dense(coded: CodedTokens) -> CodedTokens:
    acts = coded.feature_acts
    return coded._replace(feature_acts=acts.to_dense()) if acts.is_sparse else coded


def _part(count: int, of: int) -> float:
    return count / of if of else 1.0


@torch.no_grad()
def cross_entropies(
    original: SAE[Any],
    export: SAE[Any],
    model: HookedRootModule,
    prompts: Sequence[Int[Tensor, "prompts context"]],
    model_kwargs: dict[str, Any],
) -> dict[str, float | int | None]:
    """Measure what a `JumpReLUReport` says of a language model, without SAEs that are attached to it.

    Special tokens that the SAE was not trained on keep their activations.

    Args:
        original: The SAE that is stood for.
        export: The SAE that stands for it.
        model: The language model.
        prompts: Token ids.
        model_kwargs: Passed to the model.

    Raises:
        ValueError: a cross-entropy is not finite.
    """
    metadata: Any = original.cfg.metadata
    left_out = excluded_ids(model, metadata.exclude_special_tokens or False)
    losses = {
        name: CrossEntropy(sae, model, str(metadata.hook_name), None, model_kwargs, left_out)
        for name, sae in (("original", original), ("export", export))
    }
    with saes_detached(model):
        for tokens in prompts:
            for loss in losses.values():
                loss.add(tokens)
    measured = {name: loss.metrics() for name, loss in losses.items()}
    means = {
        "cross_entropy": measured["export"]["ce_loss_without_sae"],
        **{f"cross_entropy_{name}": each["ce_loss_with_sae"] for name, each in measured.items()},
    }
    if not all(mean is not None and math.isfinite(mean) for mean in means.values()):
        raise ValueError(f"the language model's cross-entropies are not finite: {means}.")
    return {"n_cross_entropy_tokens": losses["export"].n_tokens, **means}
