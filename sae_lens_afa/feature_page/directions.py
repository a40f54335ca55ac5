"""Meaning of a decoder row by itself: the rows next to it, and the tokens that it promotes and suppresses."""

from __future__ import annotations

import re
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_afa.evals.hook_reader import HookReader
from sae_lens_afa.feature_page.portions import portions

# Hook points in the residual stream, or of what is added to it; in the names of both of TransformerLens' models.
_IN_RESIDUAL = re.compile(
    r"(hook_resid_(pre|mid|post)|hook_(attn|mlp)_out|hook_(pos_)?embed|blocks\.\d+\.((attn|mlp)\.)?hook_out"
    r"|blocks\.\d+\.hook_in)$"
)


def unit_rows(W_dec: Tensor) -> Float[Tensor, "d_sae d_in"]:
    """Return decoder rows at norm 1, in float32 at least; rows of zeros stay."""
    W = W_dec.detach().to(torch.promote_types(W_dec.dtype, torch.float32))
    return torch.nn.functional.normalize(W, dim=-1)


def nearest(rows: Float[Tensor, "d_sae d_in"], n: int) -> tuple[Int[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
    """Return for each unit row the n others with the largest cosine, and the cosines."""
    n = min(n, len(rows) - 1)
    found: list[tuple[Tensor, Tensor]] = []
    for start, part in portions(rows, len(rows)):
        cosine = part @ rows.T
        at = torch.arange(len(part))
        cosine[at, at + start] = -torch.inf
        values, others = cosine.topk(n, dim=1)
        found.append((others.cpu(), values.cpu()))
    others, cosines = zip(*found, strict=True)
    return torch.cat(others), torch.cat(cosines)


def to_residual(model: Any, hook_name: str, head: int | None, d_in: int) -> Tensor | None:
    """Return the matrix by which the model takes an activation at the hook to its residual stream.

    Returns:
        [d_in, d_model]: W_O for heads, W_out for an MLP's hidden layer, the identity for what is in the residual stream
        or added to it. None where the model does not write it there directly (queries, keys, values, ...).
    """
    layer = re.match(r"blocks\.(\d+)\.", hook_name)
    d_model = int(getattr(getattr(model, "cfg", None), "d_model", 0))
    kind = hook_name.rpartition(".")[2]
    matrix: Tensor | None = None
    if kind == "hook_z" and layer is not None:
        W_O = _weight(model, f"blocks.{layer[1]}.attn.W_O")
        matrix = None if W_O is None else (W_O.flatten(0, 1) if head is None else W_O[head])
    elif hook_name.endswith("mlp.hook_post") and layer is not None:
        matrix = _weight(model, f"blocks.{layer[1]}.mlp.W_out")
    elif d_in == d_model and _IN_RESIDUAL.search(hook_name):
        matrix = torch.eye(d_model)
    return matrix if matrix is not None and matrix.shape == (d_in, d_model) else None


def unembedding(model: Any) -> Float[Tensor, "d_model d_vocab"] | None:
    """Return W_U, with the final norm's centring and scale where the model has not folded them; None if it has none."""
    W_U = _weight(model, "unembed.W_U")
    if W_U is None or W_U.ndim != 2 or W_U.shape[0] != model.cfg.d_model:
        return None
    to_logits = W_U.detach().float()
    scale, bias = _weight(model, "ln_final.w"), _weight(model, "ln_final.b")
    if scale is not None:
        to_logits = to_logits * scale.detach().float()[:, None]
    if bias is not None:  # a LayerNorm, which takes the mean of its input off; an RMSNorm has no bias
        to_logits = to_logits - to_logits.mean(0)
    return to_logits


def promoted_tokens(
    rows: Float[Tensor, "d_sae d_in"], hook: HookReader, model: Any, n: int
) -> tuple[Int[Tensor, "d_sae tokens"], Float[Tensor, "d_sae tokens"]] | None:
    """Return for each unit row the n tokens that it promotes most, then the n that it suppresses most.

    A row's effect on the logits is its direct one, through the unembedding, up to the scale of the final norm; of it
    the mean over the vocabulary is taken off, which changes no probability.

    Args:
        rows: Decoder rows at norm 1.
        hook: The hook point that they are directions at.
        model: The model.
        n: Tokens of each kind.

    Returns:
        Tokens, the most promoted first and the most suppressed last, and their logits. None where the model does not
        take the hook point's activations to its residual stream directly, or has no unembedding.
    """
    to_stream, W_U = to_residual(model, hook.name, hook.head, rows.shape[1]), unembedding(model)
    if to_stream is None or W_U is None:
        return None
    to_logits = to_stream.to(W_U) @ W_U
    to_logits -= to_logits.mean(1, keepdim=True)
    n = min(n, to_logits.shape[1] // 2)
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    for _, part in portions(rows, to_logits.shape[1]):
        effect = part.to(to_logits) @ to_logits
        high, promoted = effect.topk(n, dim=1)
        low, suppressed = effect.topk(n, dim=1, largest=False)
        tokens.append(torch.cat([promoted, suppressed.flip(1)], 1).cpu())
        logits.append(torch.cat([high, low.flip(1)], 1).cpu())
    return torch.cat(tokens), torch.cat(logits)


def _weight(model: Any, path: str) -> Tensor | None:
    """Return a tensor of the model by its path; None where there is none."""
    found = model
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name, None)
        if found is None:
            return None
    return found if isinstance(found, Tensor) else None
