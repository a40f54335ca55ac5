"""The compiled back end for cuda.

Rows that fit into the registers of one program are read once and written once (`select_row`). What does not fit,
and the rare rows that are not finite or leave float32's range, go through `select_wide_row`, which reads a row
again for every halving. It is launched in any case and returns at once from rows that are done: to ask how many
there are would make the host wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from sae_lens_afa.kernels.select_triton import select_row, select_wide_row

_LARGEST_ROW = 16384
_WIDE_BLOCK = 4096


def select_on_gpu(
    acts: Float[Tensor, "rows d_sae"],
    target_norm: Float[Tensor, " rows"],
    decoder_norm: Float[Tensor, " d_sae"] | None,
) -> Float[Tensor, "rows d_sae"]:
    """Apply the rule of `sae_lens_afa.selection` to each row of a cuda tensor, without waiting for the device."""
    acts = acts.detach().contiguous()
    target = target_norm.detach().to(acts.device, torch.float64).contiguous()
    norm = acts if decoder_norm is None else decoder_norm.detach().to(acts.device, torch.float32).contiguous()
    out = torch.empty_like(acts)
    n_rows, d_sae = acts.shape
    # In float64 there are other bit patterns; all such rows take the long way.
    fits = d_sae <= _LARGEST_ROW and acts.dtype != torch.float64
    done = torch.zeros(n_rows, dtype=torch.bool, device=acts.device)
    grid: Any = (n_rows,)
    # Nothing fused: the energy is the float32 product, rounded, and then its float32 square.
    options: dict[str, Any] = {"HAS_NORM": decoder_norm is not None, "enable_fp_fusion": False}
    block = triton.next_power_of_2(d_sae)
    in_registers: dict[str, Any] = options | {"BLOCK": block, "num_warps": 16 if block > 4096 else 4}
    in_blocks: dict[str, Any] = options | {"BLOCK": min(block, _WIDE_BLOCK), "num_warps": 8}
    with torch.cuda.device_of(acts):
        if fits:
            select_row[grid](acts, target, norm, out, done, d_sae, **in_registers)
        select_wide_row[grid](acts, target, norm, out, done, d_sae, **in_blocks)
    return out
