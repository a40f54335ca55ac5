"""Under-used features: how they are found, and the loss that has them reconstruct the residual.

aux_zipf_loss is from the Mutual Choice and Feature Choice paper (Ayonrinde, arXiv 2411.02124): where TopK's auxiliary
loss trains dead features on what the others leave over, it trains all that fire less than a Zipf law of densities
predicts. That is the paper's text. This package's choices:

- Densities are a moving average, to which the law is fitted from time to time. A feature is compared with what the law
  expects of its own rank; `dying_fraction` is the share of that below which it counts as under-used.
- Dead features (SAELens' mask) have SAELens' own loss. Features that are under-used but alive have the same loss beside
  it, with no more of them on a token than k. With SAELens' d_in // 2 of them, a hundred under-used features
  reconstruct the residual as a dense code of their own, in which none grows strong enough to be matched: that left more
  dead features than no such loss (docs/results).

With a fraction of 0 all is SAELens' loss for dead features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_lens_afa.saes._step import uncompiled
from sae_lens_afa.saes.zipf import MIN_FEATURES, ZipfLaw, expected_densities, fit_zipf

__all__ = ["DensityTracking", "aux_zipf_loss"]


def aux_zipf_loss(
    under_used: Tensor | None,
    hidden_pre: Tensor,
    residual: Tensor,
    W_dec: Tensor,
    *,
    coefficient: float,
    k_aux: int | None = None,
    rescale_acts_by_decoder_norm: bool = False,
    token_scale: Tensor | None = None,
) -> Tensor:
    """Return the squared error, summed over d_in, of the residual's reconstruction by under-used features.

    With SAELens' dead features as `under_used` and all else at its default, this is the auxiliary loss of SAELens'
    TopK and BatchTopK. Its cost is that of the under-used features, not of all.

    Args:
        under_used: The features that take part, bool [d_sae]; None or none: the loss is 0.
        hidden_pre: Pre-activations [..., d_sae].
        residual: What the SAE leaves over, [..., d_in]. Detach it, unless its gradient is wanted.
        W_dec: Decoder, [d_sae, d_in].
        coefficient: Weight of the loss.
        k_aux: Most of them that take part on one token, those with the largest pre-activations; None: d_in // 2.
        rescale_acts_by_decoder_norm: `hidden_pre` carries the norms of the decoder rows, as in SAELens' TopK.
        token_scale: Factor from the space in which the SAE decodes to that of `residual`, [..., 1].

    Returns:
        The loss, a scalar; weighed by (number under-used) / k_aux while that is less than 1, as in SAELens.

    Example:
        >>> import torch
        >>> from sae_lens_afa.saes.aux_zipf import aux_zipf_loss
        >>> dead = torch.tensor([True, False])
        >>> residual, W_dec = torch.tensor([[3.0, 4.0]]), torch.eye(2)
        >>> aux_zipf_loss(dead, torch.tensor([[2.0, 9.0]]), residual, W_dec, coefficient=1.0)
        tensor(17.)
    """
    if under_used is None or coefficient == 0:
        return residual.new_zeros(())
    index = under_used.nonzero().squeeze(-1)
    if len(index) == 0:
        return residual.new_zeros(())
    k_aux = max(1, W_dec.shape[1] // 2) if k_aux is None else k_aux
    acts = hidden_pre[..., index]
    if len(index) > k_aux:
        largest = acts.topk(k_aux, dim=-1, sorted=False)
        acts = torch.zeros_like(acts).scatter(-1, largest.indices, largest.values)
    rows = W_dec[index]
    if rescale_acts_by_decoder_norm:
        acts = acts * (1 / rows.norm(dim=-1))
    if token_scale is not None:
        acts = acts * token_scale
    return coefficient * min(len(index) / k_aux, 1.0) * (acts @ rows - residual).square().sum(-1).mean()


class DensityTracking(TrainingSAE[Any]):
    """A moving average of feature densities and the Zipf law fitted to it; a base beside SAELens' own.

    The config has `density_lr` and `dying_fraction`. The buffers named in `_tracked` are persistent, so that a resumed
    run goes on as it was; they keep their precision whatever dtype the SAE is cast to, and are no part of the saved
    inference model.

    Attributes:
        density: Moving average of each feature's density, [d_sae]: the mean over the first 1 / density_lr
            batches, exponential from then on.
        n_batches_observed: Batches in it.
        zipf_law: Exponent and offset of the law, and the L0 it is scaled to; NaN before the first fit.
    """

    density: Tensor
    n_batches_observed: Tensor
    zipf_law: Tensor
    _tracked: tuple[str, ...] = ("density", "n_batches_observed", "zipf_law")

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        device = self.W_dec.device
        self.register_buffer("density", torch.zeros(cfg.d_sae, dtype=torch.float32, device=device))
        self.register_buffer("n_batches_observed", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("zipf_law", torch.full((3,), torch.nan, dtype=torch.float32, device=device))
        # Derived from the buffers, so that a step on an accelerator need not wait for them.
        self._expected: Tensor | None = None
        self._n_observed: int | None = None

    @property
    def n_observed(self) -> int:
        """Number of batches observed, without waiting for the device."""
        if self._n_observed is None:
            self._n_observed = int(self.n_batches_observed)
        return self._n_observed

    @torch.no_grad()
    def observe_densities(self, counts: Tensor, n_tokens: int) -> None:
        """Take a batch into the average, by the number of tokens on which each feature fired, [d_sae]."""
        self._n_observed = self.n_observed + 1
        self.n_batches_observed.fill_(self._n_observed)
        rate = max(self.cfg.density_lr, 1 / self._n_observed)
        self.density.lerp_((counts / n_tokens).to(self.density.dtype), rate)

    def step_of(self, trainer_step: int) -> int:
        """Return the step that this is: a checkpoint of SAELens counts one too few, our own count goes on."""
        return max(trainer_step, self.n_observed)

    def refit_law_if_due(self, step: int) -> None:
        """Fit the law every 1 / density_lr steps; until it can be fitted, no feature counts as under-used."""
        if step > 0 and step % round(1 / self.cfg.density_lr) == 0 and int((self.density > 0).sum()) >= MIN_FEATURES:
            self.set_law(fit_zipf(self.density))

    @torch.no_grad()
    def set_law(self, law: ZipfLaw, l0: float | None = None) -> None:
        """Put a law in force, for densities that sum to `l0`, by default that of the average."""
        l0 = min(float(self.density.sum()), self.cfg.d_sae) if l0 is None else l0
        self.zipf_law.copy_(torch.tensor([law.exponent, law.offset, l0]))
        self._expected = None

    @uncompiled
    def expected_by_rank(self) -> Tensor | None:
        """Return the densities that the law in force expects of the ranks, [d_sae]; None before the first fit."""
        if self._expected is None:
            exponent, offset, l0 = self.zipf_law.tolist()
            if math.isnan(exponent):
                return None
            expected = expected_densities(ZipfLaw(exponent, offset), self.cfg.d_sae, l0)
            self._expected = expected.to(self.density)
        return self._expected

    def features_by_density(self) -> Tensor:
        """Return the features from the most to the least frequent, equals in their order, [d_sae]."""
        return self.density.argsort(descending=True, stable=True)

    @torch.no_grad()
    def under_used(self, dead: Tensor | None) -> Tensor | None:
        """Mark the features below `dying_fraction` of what is expected of their rank that are not dead, [d_sae].

        None if no such thing is known: with a fraction of 0, or before the first fit.
        """
        expected = self.expected_by_rank() if self.cfg.dying_fraction > 0 else None
        if expected is None:
            return None
        order = self.features_by_density()
        rare = torch.zeros_like(order, dtype=torch.bool)
        rare[order] = self.density[order] < self.cfg.dying_fraction * expected
        return rare if dead is None else rare & ~dead

    def drop_caches(self) -> None:
        """Forget what was derived from the buffers, which have been replaced."""
        self._expected = self._n_observed = None

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in self._tracked:
            state_dict.pop(name, None)

    # A cast to bfloat16, in which a moving average stands still, is for the weights alone. SAELens casts on loading.
    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self.drop_caches()
        dtypes = {name: self.get_buffer(name).dtype for name in self._tracked}
        keys = super().load_state_dict(state_dict, strict, assign)
        for name, dtype in dtypes.items():
            self._buffers[name] = self.get_buffer(name).to(dtype)
        return keys

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.drop_caches()
        kept = {name: self.get_buffer(name) for name in self._tracked}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = self.get_buffer(name)
            if moved.dtype != before.dtype:
                self._buffers[name] = (moved if before.is_meta else before).to(moved.device, before.dtype)
        return self
