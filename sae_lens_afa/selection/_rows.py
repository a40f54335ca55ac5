"""The portable back end: exact selection on any device, without compiled extras."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.selection._bisection import select_by_bisection
from sae_lens_afa.selection._sorting import select_by_sorting


def select_rows(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "rows d_sae"]:
    """Apply the rule of `sae_lens_afa.selection` to each row; the algorithm is chosen by device.

    On CPU the rows are sorted by numpy, whose vectorised sort is many times torch's. On accelerators a
    segmented sort is what is slow, so the boundary is found by bisection. Devices without float64 (mps)
    send the rows to the CPU and back.
    """
    acts, target_norm = acts.detach(), target_norm.detach()
    if acts.device.type in ("cpu", "mps"):
        norm = None if decoder_norm is None else decoder_norm.detach().cpu()
        return select_by_sorting(acts.cpu(), target_norm.cpu().double(), norm).to(acts.device)
    return select_by_bisection(acts, target_norm.to(acts.device, torch.float64), decoder_norm)
