"""What every selection asks of its arguments."""

from __future__ import annotations

from torch import Tensor


def check_selection(acts: Tensor, of_rows: Tensor, decoder_norm: Tensor | None, *, what: str) -> None:
    """Raise TypeError or ValueError unless the tensors fit; `what` names the one that has an entry for each row."""
    for name, tensor in (("acts", acts), (what, of_rows), ("decoder_norm", decoder_norm)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got dtype {tensor.dtype}: convert it first.")
    if acts.ndim == 0 or acts.shape[-1] == 0:
        raise ValueError(f"acts must have shape [..., d_sae] with d_sae >= 1, got {list(acts.shape)}.")
    if of_rows.shape != acts.shape[:-1]:
        raise ValueError(
            f"{what} must have shape {list(acts.shape[:-1])}, one entry for each row of acts"
            f" {list(acts.shape)}, got {list(of_rows.shape)}."
        )
    if decoder_norm is not None and decoder_norm.shape != acts.shape[-1:]:
        raise ValueError(
            f"decoder_norm must have shape [{acts.shape[-1]}], one norm for each entry of acts' last axis"
            f" (d_sae), got {list(decoder_norm.shape)}."
        )
