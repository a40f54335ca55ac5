"""Time the selection beside the literal algorithm, SAELens' TopK and the matmuls of an SAE.

    python benchmarks/bench_selection.py [--threads 1] [--json FILE]

All variants run interleaved in one process; figures are medians of ratios within a round, with their range, so
that a machine whose speed drifts does not matter. The literal algorithm sorts all scaled activations with their
indices (torch.sort), takes a cumulative sum, and scatters a mask.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sae_lens import __version__ as sae_lens_version
from sae_lens.saes.topk_sae import TopK
from torch import Tensor

from sae_lens_afa.selection import available_backends, norm_matching_topk

# Share of positive pre-activations, and the target as a share of the norm of all of them.
REGIMES = [(0.5, 0.25), (0.5, 0.8), (0.1, 0.8)]


def literal(acts: Tensor, target: Tensor, decoder_norm: Tensor) -> Tensor:
    """The rule as it reads, with a full sort: the result to compare with, at float32 sums."""
    energy = (acts.relu() * decoder_norm).square()
    ordered, order = energy.sort(dim=-1, descending=True)
    k = (ordered.cumsum(-1).sqrt() - target[:, None]).abs().argmin(-1, keepdim=True)
    keep = torch.arange(acts.shape[-1]) <= k
    return acts.relu() * torch.zeros_like(acts).scatter_(-1, order, keep.float())


def argsort(acts: Tensor) -> Tensor:
    """The sort alone."""
    return torch.argsort(acts, dim=-1, descending=True)


def inputs(rows: int, d_sae: int, positive: float, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian pre-activations shifted so that `positive` of them are, a target, and decoder norms near 1."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(positive))
    acts = torch.randn(rows, d_sae, generator=generator) + shift
    decoder_norm = 1 + 0.05 * torch.rand(d_sae, generator=generator)
    return acts, share * (acts.relu() * decoder_norm).norm(dim=-1), decoder_norm


def time_rounds(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, the variants in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for counted in range(-1, rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and range of the round-by-round ratio."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def measure(args: argparse.Namespace, positive: float, share: float) -> list[dict[str, object]]:
    """One regime: a row for each back end."""
    acts, target, norm = inputs(args.rows, args.d_sae, positive, share)
    x, W_enc, W_dec = (
        torch.randn(args.rows, args.d_in),
        torch.randn(args.d_in, args.d_sae),
        torch.randn(args.d_sae, args.d_in),
    )
    topk = TopK(64)
    variants: dict[str, Callable[[], object]] = {
        "literal": lambda: literal(acts, target, norm),
        "argsort": lambda: argsort(acts),
        "topk": lambda: topk(acts),
        "matmuls": lambda: (x @ W_enc) @ W_dec,
    }
    for backend in available_backends():
        variants[backend] = lambda backend=backend: norm_matching_topk(acts, target, norm, backend=backend)
    seconds = time_rounds(variants, args.rounds)
    l0 = (norm_matching_topk(acts, target, norm) > 0).sum(-1).float().mean().item()
    return [
        {
            "positive": positive,
            "target": share,
            "l0": l0,
            "backend": backend,
            "argsort / selection": ratio(seconds["argsort"], seconds[backend]),
            "literal / selection": ratio(seconds["literal"], seconds[backend]),
            "selection / TopK(64)": ratio(seconds[backend], seconds["topk"]),
            "selection / matmuls": ratio(seconds[backend], seconds["matmuls"]),
        }
        for backend in available_backends()
    ]


def cpu_model() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Measure all regimes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=12288)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = {
        **{k: v for k, v in vars(args).items() if k != "json"},
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "sae_lens": sae_lens_version,
    }
    print(", ".join(f"{k} {v}" for k, v in setting.items()))
    ratios = ["argsort / selection", "literal / selection", "selection / TopK(64)", "selection / matmuls"]
    print(f"{'positive':>8} {'target':>6} {'L0':>6} {'backend':>8}" + "".join(f"{name:>28}" for name in ratios))
    results = []
    for positive, share in REGIMES:
        for row in measure(args, positive, share):
            results.append(row)
            cells = "".join(
                f"{r['median']:>12.2f} ({r['min']:.2f}-{r['max']:.2f})".rjust(28) for r in (row[n] for n in ratios)
            )
            print(f"{positive:>8.0%} {share:>6} {row['l0']:>6.0f} {row['backend']:>8}{cells}")
    if args.json:
        args.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
