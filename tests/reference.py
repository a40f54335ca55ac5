"""The selection rules as they are stated, one row at a time: slow, literal, and the measure of every back end."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RowRule(NamedTuple):
    """One row's outcome: indices kept, and how far the decision was from going the other way."""

    kept: set[int]
    near_tie: bool


def row_energy(acts: np.ndarray, norm: np.ndarray | None, target: float) -> tuple[np.ndarray, float]:
    """float32 values of (a_i ||d_i||)^2 of one row, rescaled by a power of two where they leave float32's range."""
    scaled = np.maximum(acts.astype(np.float64), 0.0) * (1.0 if norm is None else norm.astype(np.float64))
    peak = scaled.max()
    if peak > 0 and not 2.0**-20 <= peak <= 2.0**60:
        exponent = int(np.frexp(peak)[1])
        scaled, target = np.ldexp(scaled, -exponent), float(np.ldexp(target, -exponent))
    product = scaled.astype(np.float32)
    return product * product, target


def select_row(acts: np.ndarray, norm: np.ndarray | None, target: float) -> RowRule:
    """Apply k* = argmin_k |sqrt(E_k) - t| to one finite row."""
    energy, goal = row_energy(acts, norm, target)
    order = sorted((i for i in range(len(energy)) if energy[i] > 0), key=lambda i: (-energy[i], i))
    if not order:
        return RowRule(set(), near_tie=False)
    prefix, total = [], 0.0
    for i in order:
        total += float(energy[i])
        prefix.append(total)
    if goal * goal >= total:
        # Where the total meets the target to the last bits, rounding of the sum decides.
        return RowRule(set(order), near_tie=bool(abs(goal - np.sqrt(total)) <= 1e-13 * goal))
    distance = np.abs(np.sqrt(np.array(prefix)) - goal)
    best = int(distance.argmin())
    others = np.delete(distance, best)
    near = bool(len(others) > 0 and others.min() - distance[best] <= 1e-13 * max(goal, np.sqrt(total)))
    return RowRule(set(order[: best + 1]), near)


def norm_matching_topk(acts: Tensor, target_norm: Tensor, decoder_norm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The literal rule for any leading shape: the selected activations, and which rows are near-ties in float64."""
    rows = acts.reshape(-1, acts.shape[-1])
    targets = target_norm.reshape(-1).double().tolist()
    norm = None if decoder_norm is None else decoder_norm.float().numpy()
    out, near = torch.zeros_like(rows), torch.zeros(len(rows), dtype=torch.bool)
    for r, row in enumerate(rows):
        if not (row.isfinite().all() and np.isfinite(targets[r])):
            out[r] = row
            continue
        kept, near[r] = select_row(row.double().numpy().astype(np.float64), norm, targets[r])
        for i in kept:
            out[r, i] = row[i]
    return out.reshape(acts.shape), near.reshape(target_norm.shape)


def assert_same_selection(out: Tensor, acts: Tensor, target: Tensor, decoder_norm: Tensor | None = None) -> None:
    """Equal to the literal rule in every entry, but in rows proven to be near-ties of the two candidates."""
    expected, near_tie = norm_matching_topk(acts, target, decoder_norm)
    same = ((out == expected) | (out.isnan() & expected.isnan())).all(-1)
    assert (same | near_tie).all()
    assert out.shape == acts.shape
    assert out.dtype == acts.dtype


def universal_threshold(x_centered: Tensor, d_sae: int, scale: float) -> Tensor:
    """scale * ||x - b_dec|| * sqrt(2 ln n / d_in) of one token at a time, in Python's float64."""
    rows = x_centered.reshape(-1, x_centered.shape[-1])
    found = []
    for row in rows.double().tolist():
        norm = math.sqrt(math.fsum(value * value for value in row))
        found.append(scale * norm * math.sqrt(2 * math.log(d_sae) / len(row)))
    return torch.tensor(found, dtype=torch.float64).reshape(x_centered.shape[:-1])


def above_threshold(acts: Tensor, threshold: Tensor, decoder_norm: Tensor | None = None) -> Tensor:
    """Keep a_i where the float32 value of a_i ||d_i|| exceeds that of the threshold (float64 for float64 values)."""
    rows = acts.reshape(-1, acts.shape[-1])
    dtype = np.float64 if acts.dtype == torch.float64 else np.float32
    norm = np.ones(rows.shape[1]) if decoder_norm is None else decoder_norm.double().numpy()
    out = torch.zeros_like(rows)
    for r, t in enumerate(threshold.reshape(-1).double().numpy().astype(dtype)):
        if not (rows[r].isfinite().all() and np.isfinite(t)):
            out[r] = rows[r]
            continue
        for i, a in enumerate(rows[r].double().numpy().astype(dtype)):
            if a * norm.astype(dtype)[i] > t:
                out[r, i] = rows[r, i]
    return out.reshape(acts.shape)


def pursue(
    z: Tensor, W_dec: Tensor, threshold: float, floor: float, weak: float, max_stages: int, typical_norm: float = 0.0
) -> Tensor:
    """The code of one token z [d_in] by pursuit, as the rule reads, in float64.

    Raises:
        LinAlgError: as many features as dimensions are fitted at once, which does not determine their values.
    """
    z, W = z.double(), W_dec.double()
    norms, code, residual = W.norm(dim=1), torch.zeros(len(W_dec), dtype=torch.float64), z.double()

    def outstanding(among: Tensor) -> Tensor:
        """How far each of these stands out from the residual, 0 where it does not or is active."""
        along = torch.where(norms > 0, W @ residual / norms, 0)
        least = threshold * max(float(residual.norm()), max(floor, 1e-4) * max(float(z.norm()), typical_norm))
        return torch.where(among & (code == 0) & (along > least), along, 0)

    for _ in range(max_stages):
        candidates = outstanding(torch.ones(len(W), dtype=torch.bool)) > 0
        if not candidates.any():
            break
        while (along := outstanding(candidates)).any():
            joins = (along > 0) & (along >= weak * along.max())
            active = (joins | (code != 0)).nonzero().squeeze(1)
            values = code[active]
            if len(active) >= len(z):
                raise torch.linalg.LinAlgError("dependent features")
            while len(active) > 0:  # Lawson and Hanson
                fit = torch.linalg.lstsq(W[active].T, z[:, None]).solution[:, 0]
                below = fit <= 0
                if not below.any():
                    values = fit
                    break
                steps = torch.where(below, values / (values - fit), 1.0)
                values = values + steps.min() * (fit - values)
                stays = ~(below & (steps <= steps.min()))
                active, values = active[stays], values[stays]
            code = torch.zeros_like(code).index_copy(0, active, values)
            residual = z - code @ W
    return code
