"""The handful of norms that AFA asks of a token, however wide the dictionary (arXiv 2503.24277, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.functional import check_last_axis, check_matrix

COLUMNS: tuple[str, ...] = (
    "token_index",
    "l0",
    "dense_norm",
    "feature_norm",
    "recons_norm",
    "squared_error",
    "centered_dense_norm",
    "centered_feature_norm",
    "centered_recons_norm",
    "token_std",
)
_OF_RECONS = ("recons_norm", "squared_error", "centered_recons_norm")
# Elements of a temporary: as much as stays in a core's cache; on a GPU, enough to fill it.
_CPU_ELEMENTS, _DEVICE_ELEMENTS, _BLOCK_ELEMENTS = 2**18, 2**24, 2**21


class Raw(NamedTuple):
    """Activations at the hook point and what the SAE makes of them, its normalisation undone."""

    x: Float[Tensor, "tokens d_in"]
    recons: Float[Tensor, "tokens d_in"]


@dataclass(frozen=True)
class TokenBlock:
    """Some tokens of a stream.

    Attributes:
        columns: `COLUMNS` x tokens, float64 on the CPU; NaN in a column that is not known.
        dense: The tokens' dense vectors [tokens, d_in], for the variance that reconstructions are to explain.
        known: Names of the columns that are known; `token_std` is none of the metrics, and not among them.
        raw: The tokens at the hook point, x and x^ [tokens, d_in] each; None if they are not known.
    """

    columns: Float[Tensor, "columns tokens"]
    dense: Float[Tensor, "tokens d_in"] | None
    known: tuple[str, ...] = COLUMNS[:-1]
    raw: Raw | None = None

    def __getitem__(self, keep: Tensor) -> TokenBlock:
        """Return the tokens where the mask `keep` (on the CPU) is set."""
        dense = None if self.dense is None else self.dense[keep.to(self.dense.device)]
        raw = None if self.raw is None else Raw(*(vectors[keep.to(vectors.device)] for vectors in self.raw))
        return TokenBlock(self.columns[:, keep], dense, self.known, raw)


def token_blocks(
    dense: Float[Tensor, "tokens d_in"],
    feature_acts: Float[Tensor, "tokens d_sae"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
    b_dec: Float[Tensor, " d_in"] | None,
    recons: Float[Tensor, "tokens d_in"] | None,
    token_scale: Float[Tensor, " tokens"] | None,
    token_index: Float[Tensor, " tokens"],
    token_std: Float[Tensor, " tokens"] | None = None,
    raw: Raw | None = None,
) -> Iterator[TokenBlock]:
    """Yield the norms of each token, in blocks whose float64 temporaries stay small.

    Args:
        dense: z in the space in which the SAE decodes, un-centred.
        feature_acts: f, strided or COO.
        decoder_norm: ||d_i||, float64; None where f already carries it.
        b_dec: The decoder's bias; None if it has none.
        recons: z^ in the same space; None if it is not known.
        token_scale: Every norm of a token is multiplied by this; None for 1.
        token_index: The tokens' places in the stream.
        token_std: What each token was divided by before it became z; None where that is 1, or in `token_scale`.
        raw: The tokens at the hook point; None if they are not known.
    """
    accurate = accurate_dtype(dense)
    l0, centered_feature = _l0_and_norm(feature_acts, decoder_norm)
    bias = dense.new_zeros(dense.shape[-1], dtype=accurate) if b_dec is None else b_dec.to(accurate)
    feature = torch.hypot(centered_feature, torch.linalg.vector_norm(bias))
    scale = torch.ones_like(feature) if token_scale is None else token_scale.to(accurate)
    std = torch.full_like(feature, torch.nan) if token_std is None else token_std.to(accurate)
    known = tuple(name for name in COLUMNS[:-1] if recons is not None or name not in _OF_RECONS)
    rows = max(1, _BLOCK_ELEMENTS // dense.shape[-1])
    for start in range(0, len(dense), rows):
        part = slice(start, start + rows)
        z = dense[part].to(accurate)
        unknown = torch.full_like(feature[part], torch.nan)
        recons_norm = squared_error = centered_recons = unknown
        if recons is not None:
            z_hat = recons[part].to(accurate)
            recons_norm, centered_recons = _norm(z_hat), _norm(z_hat - bias)
            squared_error = (z_hat - z).square().sum(-1) * scale[part]  # times the scale once more below
        norms = [_norm(z), feature[part], recons_norm, squared_error]
        norms += [_norm(z - bias), centered_feature[part], centered_recons]
        scaled_norms = [norm * scale[part] for norm in norms]
        columns = torch.stack([token_index[part].to(accurate), l0[part], *scaled_norms, std[part]])
        scaled = dense[part] if token_scale is None else z * scale[part, None]
        raw_part = None if raw is None else Raw(raw.x[part], raw.recons[part])
        yield TokenBlock(columns.cpu().double(), scaled, known, raw_part)


def _l0_and_norm(acts: Tensor, decoder_norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return each token's active features and ||[f_i ||d_i||]||, [tokens] each, without a copy of `acts`."""
    accurate = accurate_dtype(acts)
    l0 = torch.zeros(acts.shape[0], dtype=accurate, device=acts.device)
    norm = torch.zeros_like(l0)
    if acts.layout == torch.sparse_coo:
        coalesced = acts.coalesce()
        (row, feature), values = coalesced.indices(), coalesced.values().to(accurate)
        scaled = values if decoder_norm is None else values * decoder_norm[feature]
        l0.index_add_(0, row, (values != 0).to(accurate))
        return l0, norm.index_add_(0, row, scaled.square()).sqrt_()
    elements = _CPU_ELEMENTS if acts.device.type == "cpu" else _DEVICE_ELEMENTS
    rows = max(1, elements // acts.shape[-1])
    for start in range(0, len(acts), rows):
        part = slice(start, start + rows)
        l0[part] = torch.count_nonzero(acts[part], dim=-1).to(accurate)
        scaled = acts[part] if decoder_norm is None else acts[part] * decoder_norm
        norm[part] = torch.linalg.vector_norm(scaled, dim=-1, dtype=accurate)
    return l0, norm


def decoder_norms(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """Return ||d_i|| in float64 (float32 on mps)."""
    check_matrix("W_dec", W_dec)
    W_dec = W_dec.detach()
    rows = max(1, _BLOCK_ELEMENTS // max(1, W_dec.shape[-1]))
    return torch.cat([_norm(part.to(accurate_dtype(W_dec))) for part in W_dec.split(rows)])


def check_shapes(
    dense: Tensor, feature_acts: Tensor, d_in: int, d_sae: int, recons: Tensor | None, b_dec: Tensor | None
) -> None:
    """Refuse tensors that do not belong together.

    Raises:
        ValueError: naming the tensor and the axis.
    """
    check_last_axis("dense", dense, "d_in", d_in)
    check_last_axis("feature_acts", feature_acts, "d_sae", d_sae)
    if feature_acts.layout not in (torch.strided, torch.sparse_coo):
        raise ValueError(f"feature_acts must be dense or sparse COO, got {feature_acts.layout}; call .to_dense().")
    if dense.shape[:-1] != feature_acts.shape[:-1]:
        raise ValueError(
            "dense and feature_acts must agree in all axes but the last (one row per token),"
            f" got {list(dense.shape)} and {list(feature_acts.shape)}."
        )
    if recons is not None and recons.shape != dense.shape:
        raise ValueError(f"recons must have the shape of dense, {list(dense.shape)}, got {list(recons.shape)}.")
    if b_dec is not None:
        check_last_axis("b_dec", b_dec, "d_in", d_in)


def flat_rows(tensor: Tensor) -> Tensor:
    """Return [..., width] as [tokens, width]; COO stays COO."""
    if tensor.layout == torch.sparse_coo and tensor.ndim == 2:
        return tensor
    if tensor.layout != torch.sparse_coo:
        return tensor.reshape(-1, tensor.shape[-1])
    tensor = tensor.coalesce()
    *leading, feature = tensor.indices()
    row = torch.zeros_like(feature)
    for index, size in zip(leading, tensor.shape[:-1], strict=True):
        row = row * size + index
    shape = (tensor.shape[:-1].numel(), tensor.shape[-1])
    return torch.sparse_coo_tensor(torch.stack([row, feature]), tensor.values(), shape)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def accurate_dtype(tensor: Tensor) -> torch.dtype:
    """Return float64, or float32 on mps, which has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
