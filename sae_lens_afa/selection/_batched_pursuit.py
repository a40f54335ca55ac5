"""Pursuit by batched torch operations, on any device: lists of the features near each token, of one length.

What `sae_lens_afa.kernels.pursue` does token by token; the rule is in `sae_lens_afa.selection.pursuit`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_afa.selection.pursuit_rule import PursuitRule

# Entries of the gathered rows [tokens, active, d_in] that are held at a time.
GATHERED = 1 << 25


def pursue_portable(
    x: Float[Tensor, "tokens d_in"],
    W: Float[Tensor, "d_sae d_in"],
    correlations: Float[Tensor, "tokens d_sae"],
    inverse_norm: Float[Tensor, " d_sae"],
    rule: PursuitRule,
    typical_norm: Float[Tensor, ""],
) -> Float[Tensor, "tokens d_sae"]:
    """Pursue on any device, by batched torch operations on the tokens that are not done."""
    norm = torch.linalg.vector_norm(x, dim=-1)
    finite = norm.isfinite()
    codes = torch.where(finite[:, None], 0, correlations)
    tokens, residual = finite.nonzero().squeeze(-1), x.clone()
    for stage in range(rule.max_stages):
        rest = residual[tokens]
        least = rule.floor * torch.maximum(norm[tokens], typical_norm)
        lengths = (correlations[tokens] if stage == 0 else rest @ W.T) * inverse_norm
        threshold = rule.threshold * torch.maximum(torch.linalg.vector_norm(rest, dim=-1), least)
        active = codes[tokens] != 0
        joins = (lengths > threshold[:, None]) & ~active
        going_on = joins.any(-1)
        tokens, active, joins, least = tokens[going_on], active[going_on], joins[going_on], least[going_on]
        if len(tokens) == 0:
            break
        near, lowered = active | joins, torch.zeros(len(tokens), dtype=torch.bool, device=x.device)
        step = max(1, GATHERED // (int(near.sum(-1).max()) * x.shape[1]))
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            here, support = tokens[part], Support.of(near[part], W)
            may_join = joins[part].gather(1, support.features) & support.used
            before = support.gather(codes[here])
            values = support.pursue(x[here], before, may_join, inverse_norm, least[part], rule)
            codes[here] = support.scatter(values, codes.shape[1])
            residual[here] = x[here] - support.decode(values)
            lowered[part] = (values != before).any(-1)
        tokens = tokens[lowered]
    return codes


class Support(NamedTuple):
    """Active features of some tokens as lists of one length: `rows` of the dictionary, 0 where `used` is not."""

    features: Int[Tensor, "tokens active"]
    used: Bool[Tensor, "tokens active"]
    rows: Float[Tensor, "tokens active d_in"]

    @classmethod
    def of(cls, active: Bool[Tensor, "tokens d_sae"], W: Float[Tensor, "d_sae d_in"]) -> Support:
        """List the active features of each token, by rising feature."""
        counts = active.sum(-1)
        token, feature = active.nonzero(as_tuple=True)
        place = torch.arange(len(token), device=W.device) - (counts.cumsum(0) - counts)[token]
        used = torch.arange(max(1, int(counts.max())), device=W.device) < counts[:, None]
        features = torch.zeros_like(used, dtype=torch.int64)
        features[token, place] = feature
        return cls(features, used, W[features] * used[..., None])

    def gather(self, codes: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "tokens active"]:
        """Return the entries of these features, 0 where there is none."""
        return codes.gather(1, self.features) * self.used

    def scatter(self, values: Float[Tensor, "tokens active"], d_sae: int) -> Float[Tensor, "tokens d_sae"]:
        """Return codes with these values."""
        codes = values.new_zeros(len(values), d_sae)
        return codes.scatter_add_(1, self.features, values * self.used)

    def decode(self, values: Float[Tensor, "tokens active"]) -> Float[Tensor, "tokens d_in"]:
        """Return what these values of the features add up to."""
        return torch.einsum("ta,tad->td", values, self.rows)

    def pursue(
        self,
        x: Float[Tensor, "tokens d_in"],
        values: Float[Tensor, "tokens active"],
        may_join: Bool[Tensor, "tokens active"],
        inverse_norm: Float[Tensor, " d_sae"],
        least: Float[Tensor, " tokens"],
        rule: PursuitRule,
    ) -> Float[Tensor, "tokens active"]:
        """Let those that may join do so, the strongest first, until none stands out; return the values.

        Each fit lowers what is left over, but for rounding where rows are nearly equal: what does not is taken
        back, and the token is left at that, or the same features would come and go for ever.
        """
        scale = inverse_norm[self.features]
        before, left = values, torch.full_like(least, torch.inf)
        stuck = torch.zeros_like(least, dtype=torch.bool)
        while True:
            rest = x - self.decode(values)
            norm = torch.linalg.vector_norm(rest, dim=-1)
            stuck |= ~(norm < left)
            values = torch.where(stuck[:, None], before, values)
            before, left = values, norm
            lengths = torch.einsum("tad,td->ta", self.rows, rest) * scale
            lengths = torch.where(may_join & (values == 0), lengths, 0)
            threshold = rule.threshold * torch.maximum(norm, least)[:, None]
            joins = (lengths > threshold) & (lengths >= rule.weak * lengths.amax(-1, keepdim=True)) & ~stuck[:, None]
            going_on = joins.any(-1, keepdim=True)
            if not bool(going_on.any()):
                return values
            # A token that is done is left as it is: its active features alone, whose fit it has.
            fitted = self.fit(x, values, joins | (values != 0))
            values = torch.where(going_on, fitted, values)

    def solve(
        self, free: Bool[Tensor, "tokens active"], right: Float[Tensor, "tokens active"]
    ) -> Float[Tensor, "tokens active"]:
        """Solve (rows rows^T) s = right on the free features; 0 for the others."""
        gram = self.rows @ self.rows.mT * (free[:, :, None] & free[:, None, :])
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # A trace of a ridge, by which equal rows share what is theirs: more than a sum of so many is rounded by.
        ridge = max(64, gram.shape[-1]) * torch.finfo(gram.dtype).eps
        diagonal += torch.where(diagonal > 0, ridge * diagonal, 1)
        factor, _ = torch.linalg.cholesky_ex(gram)
        return torch.cholesky_solve((right * free)[..., None], factor)[..., 0] * free

    def fit(
        self,
        x: Float[Tensor, "tokens d_in"],
        values: Float[Tensor, "tokens active"],
        free: Bool[Tensor, "tokens active"],
    ) -> Float[Tensor, "tokens active"]:
        """Fit tokens on the free features without a negative value, from `values` on, which are not negative."""
        products = torch.einsum("tad,td->ta", self.rows, x)
        while True:
            fit = self.solve(free, products)
            blocked = free & (fit <= 0)
            if not bool(blocked.any()):
                return fit
            # As far as the first value that becomes 0: at once, where one is 0 already.
            steps = torch.where(blocked, values / (values - fit).clamp(min=torch.finfo(x.dtype).tiny), 1)
            step = steps.amin(-1, keepdim=True)
            free = free & ~(blocked & (steps <= step))
            values = torch.where(free, values + step * (fit - values), 0)
