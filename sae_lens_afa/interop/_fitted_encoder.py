"""One matmul in place of a pursuit: an encoder fitted to a dictionary that has none.

The dictionary stays as it is. The encoder learns to reconstruct with it, by as many features as the pursuit uses on
average, those with the largest pre-activations of each batch (BatchTopK's rule); at the end one threshold on all
pre-activations, in units of the decoder norm, takes the place of the batch. It cannot explain away, as a pursuit does:
which features a token is made of is not a linear function of the token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from sae_lens.saes.sae import SAE
from torch import Tensor, nn
from tqdm.auto import tqdm

from sae_lens_afa.saes.afa_pursuit_sae import token_weight

# What was tried on the bundled model's activations: docs/afa_pursuit.md.
_LEARNING_RATE, _BATCH, _MIN_STEPS, _PASSES = 3e-3, 1024, 300, 8
_START = 0.5  # of the decoder's transpose: several features share what each would take alone
_WARM_UP, _DECAY = 0.1, 0.4  # parts of the training


class FittedEncoder(NamedTuple):
    """An encoder of one matmul, and what was seen of the codes that it stands for."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    threshold: Float[Tensor, " d_sae"]
    never_selected: Bool[Tensor, " d_sae"]


def fit_encoder(sae: Any, batches: Iterator[Float[Tensor, "tokens d_in"]], *, progress: bool = False) -> FittedEncoder:
    """Fit an encoder to an SAE without one, on raw activations, which are held in memory.

    Args:
        sae: The SAE; its codes say how many features there are to be, and it is not changed.
        batches: What to fit on.
        progress: Show a progress bar.
    """
    rows, n_active, selected = [], 0, torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    with tqdm(unit=" tokens", desc="codes", disable=not progress) as bar:
        for batch in batches:
            x = batch.to(sae.device)
            active = sae.encode(x) > 0
            n_active += int(torch.count_nonzero(active))
            selected |= active.any(0)
            rows.append((sae.normalized_input(x) - sae.b_dec).float())
            bar.update(len(x))
    z = torch.cat(rows)
    encoder = _Encoder(sae, n_active / len(z))
    _train(encoder, z, progress)
    threshold = encoder.threshold(z) / encoder.norm
    W_enc, b_enc, threshold = (each.detach().to(sae.dtype) for each in (encoder.W_enc, encoder.b_enc, threshold))
    return FittedEncoder(W_enc, b_enc, threshold, ~selected)


class _Encoder:
    """The encoder while it is fitted: float32, with the dictionary held fixed."""

    def __init__(self, sae: SAE[Any], l0: float) -> None:
        self.W_dec = sae.W_dec.detach().float()
        self.norm = torch.linalg.vector_norm(self.W_dec, dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        self.W_enc = nn.Parameter(_START * (self.W_dec / self.norm[:, None] ** 2).T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros_like(self.norm))
        self.l0 = l0

    def lengths(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """Return pre-activations in units of the decoder norm, without those below 0."""
        return ((z @ self.W_enc + self.b_enc) * self.norm).relu()

    def least(self, lengths: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, ""]:
        """Return the value from which on a batch has as many active features as the pursuit."""
        wanted = min(max(1, round(self.l0 * len(lengths))), lengths.numel())
        return lengths.detach().flatten().topk(wanted, sorted=False).values.min()

    def loss(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
        """Return the squared error, each token weighed by 1 / its variance, as when the dictionary was learnt."""
        lengths = self.lengths(z)
        values = torch.where(lengths >= self.least(lengths), lengths, 0)
        error = (z - (values / self.norm) @ self.W_dec).square().sum(-1)
        return (error * token_weight(z)).mean()

    @torch.no_grad()
    def threshold(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, ""]:
        """Return the mean of `least` over batches; what is above it is active."""
        least = torch.stack([self.least(self.lengths(rows)) for rows in z.split(_BATCH)])
        return least.mean() * (1 - torch.finfo(torch.float32).eps)


@torch.enable_grad()
def _train(encoder: _Encoder, z: Float[Tensor, "tokens d_in"], progress: bool) -> None:
    """Minimise the loss by Adam, over the tokens in one random order after the other, the same for every call."""
    steps = max(_MIN_STEPS, _PASSES * len(z) // _BATCH)
    optimizer = torch.optim.Adam([encoder.W_enc, encoder.b_enc], lr=_LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (_WARM_UP * steps), (steps - step) / (_DECAY * steps))
    )
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.int64)
    for _ in tqdm(range(steps), desc="encoder", unit=" steps", disable=not progress):
        while len(order) < min(_BATCH, len(z)):
            order = torch.cat([order, torch.randperm(len(z), generator=generator)])
        here, order = order[:_BATCH], order[_BATCH:]
        optimizer.zero_grad()
        encoder.loss(z[here.to(z.device)]).backward()
        optimizer.step()
        scheduler.step()
