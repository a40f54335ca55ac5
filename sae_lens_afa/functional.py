"""The mathematics of approximate feature activation (AFA) as pure functions of tensors.

Source: "Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality", arXiv 2503.24277.
If z = sum_i f_i d_i with unit d_i, pairwise almost orthogonal, then ||f|| is close to ||z||: the dense norm says
what the feature norm ought to be, without looking at the features.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa import _transforms, over_ranks
from sae_lens_afa._memory import empty

__all__ = [
    "Coherence",
    "afa_loss",
    "coherence",
    "epsilon_lbo",
    "feature_norm",
    "sparsity_loss",
    "universal_ratio",
    "universal_threshold",
]


class Coherence(NamedTuple):
    """Overlaps of a dictionary's directions: over all pairs i != j of unit rows, |<d_i, d_j>|; 0 if orthogonal.

    Example:
        >>> from sae_lens_afa.functional import Coherence
        >>> Coherence(max=0.5, mean=0.1).max
        0.5
    """

    max: float
    mean: float


def feature_norm(
    feature_acts: Float[Tensor, "*tokens d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"] | None = None,
) -> Float[Tensor, "*tokens"]:
    """Return the norm of the feature vector in the units of the input, ||[f_i ||d_i||, ||b_dec||]|| (section 4).

    Args:
        feature_acts: Activations not scaled by decoder norms, shape [..., d_sae].
        W_dec: Decoder, shape [d_sae, d_in]. Its row norms scale the activations, so that the result does not
            depend on how scale is split between encoder and decoder.
        b_dec: Decoder bias, shape [d_in], counted as one more feature: the paper's form, to be compared with
            the norm of the un-centred input. None leaves it out: the centred form, to be compared with
            ||x - b_dec||.

    Returns:
        Shape [...].

    Raises:
        ValueError: the last axis of an argument does not fit `W_dec`.

    Example:
        >>> import torch
        >>> from sae_lens_afa.functional import feature_norm
        >>> feature_norm(torch.tensor([[3.0, 4.0]]), torch.eye(2))
        tensor([5.])
    """
    check_matrix("W_dec", W_dec)
    d_sae, d_in = W_dec.shape
    check_last_axis("feature_acts", feature_acts, "d_sae", d_sae)
    norms = torch.linalg.vector_norm(feature_acts * torch.linalg.vector_norm(W_dec, dim=-1), dim=-1)
    if b_dec is None:
        return norms
    check_last_axis("b_dec", b_dec, "d_in", d_in)
    return torch.hypot(norms, torch.linalg.vector_norm(b_dec).to(norms.dtype))


def afa_loss(feature_acts: Float[Tensor, "*tokens d_sae"], x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, ""]:
    """Return the AFA loss, the mean over tokens of (||f|| - ||x||)^2 (section 5).

    Args:
        feature_acts: Activations f, shape [..., d_sae], not scaled by decoder norms.
        x: What the SAE encodes, un-centred and after input normalisation, shape [..., d_in].

    Returns:
        A scalar, at least float32. Its gradient at f = 0 is 0.

    Raises:
        ValueError: the leading axes differ.

    Example:
        >>> import torch
        >>> from sae_lens_afa.functional import afa_loss
        >>> afa_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 3.0]]))
        tensor(4.)
    """
    if feature_acts.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            "feature_acts and x must agree in all axes but the last (one row per token),"
            f" got {list(feature_acts.shape)} and {list(x.shape)}."
        )
    return (_row_norm(feature_acts) - _row_norm(x)).square().mean()


def sparsity_loss(
    feature_acts: Float[Tensor, "*tokens d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    x_centered: Float[Tensor, "*tokens d_in"],
) -> Float[Tensor, ""]:
    """Return over how many features the norm of a code is spread, in the units of an MSE.

    Of a code f~ = [f_i ||d_i||] the measure (||f~||_1 / ||f~||_2)^2 is Hoyer's: n for n equal features, and between 1
    and L0 for others. It does not depend on the norm of the code, which another loss is to pin. Its mean over tokens
    is given as a share of d_in, times the mean square of the input's entries: scaling the input scales it as it scales
    an MSE that is a mean over features, and it depends neither on the number of tokens nor, at the same share of
    active features, on the dimension. This package's, not the paper's.

    Args:
        feature_acts: Activations not scaled by decoder norms, shape [..., d_sae]. A token without any counts as 0.
        W_dec: Decoder, shape [d_sae, d_in].
        x_centered: What is encoded, less b_dec, shape [..., d_in]; gives the scale and gets no gradient.

    Returns:
        A scalar, at least float32. Its gradient at f = 0 is 0.

    Raises:
        ValueError: an axis of an argument does not fit the others.

    Example:
        >>> import torch
        >>> from sae_lens_afa.functional import sparsity_loss
        >>> x = torch.ones(1, 2)
        >>> sparsity_loss(torch.tensor([[1.0, 1.0]]), torch.eye(2), x)  # two features, of d_in = 2
        tensor(1.0000)
        >>> sparsity_loss(torch.tensor([[1.0, 0.0]]), torch.eye(2), x)
        tensor(0.5000)
    """
    check_matrix("W_dec", W_dec)
    d_sae, d_in = W_dec.shape
    check_last_axis("feature_acts", feature_acts, "d_sae", d_sae)
    check_last_axis("x_centered", x_centered, "d_in", d_in)
    if feature_acts.shape[:-1] != x_centered.shape[:-1]:
        raise ValueError(
            "feature_acts and x_centered must agree in all axes but the last (one row per token),"
            f" got {list(feature_acts.shape)} and {list(x_centered.shape)}."
        )
    scaled = feature_acts * torch.linalg.vector_norm(W_dec, dim=-1)
    norm = _row_norm(scaled)
    ratio = scaled.abs().sum(-1, dtype=norm.dtype) / torch.where(norm == 0, 1, norm)
    return ratio.square().mean() / d_in * (over_ranks.averaged(_row_norm(x_centered.detach()).square().mean()) / d_in)


def epsilon_lbo(
    dense_norm: Float[Tensor, "*tokens"], feature_norm: Float[Tensor, "*tokens"], d_sae: int
) -> Float[Tensor, "*tokens"]:
    """Return the lower bound on the quasi-orthogonality eps that explains a token's norms (section 4).

    | ||z||^2 - ||f||^2 | / ((d_sae - 1) ||f||^2): if all pairs of features overlap by at most eps, it is at most eps.

    Args:
        dense_norm: ||z|| per token, shape [...].
        feature_norm: ||f|| per token, same shape; see `feature_norm`.
        d_sae: Number of features, without the bias.

    Returns:
        Shape [...]; NaN where it is undefined: ||f|| = 0, or d_sae = 1.

    Raises:
        ValueError: the shapes differ or d_sae < 1.

    Example:
        >>> import torch
        >>> from sae_lens_afa.functional import epsilon_lbo
        >>> epsilon_lbo(torch.tensor([2.0]), torch.tensor([1.0]), d_sae=4)
        tensor([1.])
    """
    if dense_norm.shape != feature_norm.shape:
        raise ValueError(
            f"dense_norm and feature_norm must have one shape, got {list(dense_norm.shape)}"
            f" and {list(feature_norm.shape)}."
        )
    if d_sae < 1:
        raise ValueError(f"d_sae must be at least 1, got {d_sae}.")
    if d_sae == 1:
        return torch.full_like(feature_norm, torch.nan)
    # Of the ratio and not of the squares: those of large norms overflow, and close norms cancel.
    ratio = dense_norm / torch.where(feature_norm == 0, torch.nan, feature_norm)
    return (ratio - 1).abs() * (ratio + 1) / (d_sae - 1)


def universal_threshold(
    dense_norm: Float[Tensor, "*tokens"], d_in: int, d_sae: int, scale: float | Tensor = 1.0
) -> Float[Tensor, "*tokens"]:
    """Return what a feature must exceed to be no interference: scale * ||x - b_dec|| * sqrt(2 ln(d_sae) / d_in).

    An inactive feature's pre-activation is what the input has in the feature's direction by chance. For directions
    spread evenly in R^d_in that is about normal, with standard deviation ||x - b_dec|| / sqrt(d_in) per unit of
    decoder norm; and the largest of d_sae such values is about sqrt(2 ln(d_sae)) standard deviations: the universal
    threshold of Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81 (1994).

    Args:
        dense_norm: ||x - b_dec|| per token, shape [...].
        d_in: Width of the activations.
        d_sae: Number of features. With one feature, the threshold is 0.
        scale: Factor c, 1 in the derivation; a number, or a scalar tensor.

    Returns:
        Shape [...], in the units of activation times decoder norm, and the dtype of `dense_norm`.

    Raises:
        TypeError: `dense_norm` is not a floating-point tensor.
        ValueError: a size below 1, or a negative or non-finite scale.

    Example:
        >>> import torch
        >>> from sae_lens_afa.functional import universal_threshold
        >>> universal_threshold(torch.tensor([10.0, 0.0]), d_in=128, d_sae=512)
        tensor([3.1221, 0.0000])
    """
    if not dense_norm.is_floating_point():
        raise TypeError(f"dense_norm must be a floating-point tensor, got dtype {dense_norm.dtype}.")
    return dense_norm * universal_ratio(d_in, d_sae, scale)


@overload
def universal_ratio(d_in: int, d_sae: int, scale: float = 1.0) -> float: ...
@overload
def universal_ratio(d_in: int, d_sae: int, scale: Tensor) -> Tensor: ...
def universal_ratio(d_in: int, d_sae: int, scale: float | Tensor = 1.0) -> float | Tensor:
    """Return the universal threshold of a token of norm 1: scale * sqrt(2 ln(d_sae) / d_in).

    Args:
        d_in: Width of the activations.
        d_sae: Number of features.
        scale: Factor c; a number, or a scalar tensor.

    Raises:
        ValueError: a size below 1, or a negative or non-finite scale.

    Example:
        >>> from sae_lens_afa.functional import universal_ratio
        >>> round(universal_ratio(d_in=768, d_sae=12288), 3)
        0.157
    """
    for name, size in (("d_in", d_in), ("d_sae", d_sae)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    # torch.compile would make a graph for each value that is looked at; a tensor's would have to be waited for.
    is_open = isinstance(scale, Tensor) or torch.compiler.is_compiling()
    if not is_open and not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale must be a finite number >= 0, got {scale}.")
    return scale * math.sqrt(2 * math.log(d_sae) / d_in)


def coherence(W_dec: Float[Tensor, "d_sae d_in"], *, block_size: int = 1024) -> Coherence:
    """Return the largest and mean overlap of a dictionary's directions: the eps that quasi-orthogonality is about.

    Args:
        W_dec: Decoder, shape [d_sae, d_in]; rows are normalised first, zero rows overlap with nothing.
        block_size: Rows per block. Memory is a few times block_size * (block_size + d_in), whatever d_sae.

    Returns:
        Maximum and mean of |<d_i, d_j>| over i != j; both NaN for a single row.

    Raises:
        ValueError: `W_dec` is not a matrix, or `block_size` < 1.

    Example:
        >>> import torch
        >>> from sae_lens_afa.functional import coherence
        >>> coherence(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])).max
        0.800000011920929
    """
    check_matrix("W_dec", W_dec)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}.")
    n = len(W_dec)
    if n <= 1:
        return Coherence(torch.nan, torch.nan)
    blocks = W_dec.detach().split(block_size)
    largest = torch.zeros((), device=W_dec.device)
    total = largest.to(torch.float32 if W_dec.device.type == "mps" else torch.float64)
    for i, block in enumerate(blocks):
        rows = _unit_rows(block)
        for j in range(i, len(blocks)):
            overlaps = (rows @ (rows if i == j else _unit_rows(blocks[j])).T).abs_()
            if i == j:
                overlaps.fill_diagonal_(0)
            largest = torch.maximum(largest, overlaps.amax())
            # Pairs of two blocks stand for their transposes as well.
            total += overlaps.sum(-1).to(total.dtype).sum() * (1 if i == j else 2)
    return Coherence(float(largest), float(total) / (n * (n - 1)))


def _unit_rows(W: Tensor) -> Tensor:
    return torch.nn.functional.normalize(W.float(), dim=-1, eps=torch.finfo(torch.float32).tiny)


def _row_norm(x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens"]:
    """Return norms along the last axis, accumulated in at least float32; their gradient at 0 is 0."""
    if _transforms.at_work():
        return _RowNorm.forward(x)
    return _RowNorm.apply(x)  # pyright: ignore[reportReturnType]


class _RowNorm(torch.autograd.Function):
    """The norm with a cheaper gradient: that of `torch.linalg.vector_norm` passes over [tokens, d_sae] five times."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, norm = ctx.saved_tensors
        scale = torch.where(norm == 0, 0, grads[0] / norm)[..., None]
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return (x * scale).to(x.dtype)
        return torch.mul(x, scale, out=empty(x.shape, x))


def check_matrix(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless the tensor is a matrix [d_sae, d_in]."""
    if tensor.ndim != 2:
        raise ValueError(f"{name} must be a matrix [d_sae, d_in], got shape {list(tensor.shape)}.")


def check_last_axis(name: str, tensor: Tensor, axis: str, size: int) -> None:
    """Raise ValueError unless the tensor's last axis has `size` entries; the message calls it `axis`."""
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        raise ValueError(f"{name}: the last axis must be {axis} = {size}, as in W_dec, got {list(tensor.shape)}.")
