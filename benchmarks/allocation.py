"""Cost of sharing out a batch's matches beside SAELens' BatchTopK: `python -m benchmarks.allocation [--json FILE]`.

At the same size and budget; times in turn, ratios within a round. Memory is the peak above that before the call, as a
multiple of one [tokens, d_sae] float32, the output included.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopK
from torch import Tensor

from benchmarks.measuring import peak_extra_bytes, ratio, setting, time_rounds
from sae_lens_afa.files import write_whole
from sae_lens_afa.saes._matching import feature_choice, mutual_choice
from sae_lens_afa.saes.zipf import ZipfLaw, allocate_matches, expected_densities

# Tokens, d_sae, k.
SIZES = [(1024, 12_288, 32), (4096, 12_288, 32), (4096, 4096, 64), (512, 32_768, 64)]
GOAL = 1.3


def variants(rows: int, d_sae: int, k: int) -> dict[str, Callable[[], object]]:
    """Return each rule as a call on Gaussian pre-activations; allocations are made beforehand, as in training."""
    acts = torch.randn(rows, d_sae, generator=torch.Generator().manual_seed(0))
    batchtopk, budget = BatchTopK(k), k * rows

    def matches(law: ZipfLaw) -> Tensor:
        ranked = allocate_matches(expected_densities(law, d_sae, k), budget, rows)
        return ranked[torch.randperm(d_sae, generator=torch.Generator().manual_seed(1))]

    uniform, zipf = matches(ZipfLaw(0.0)), matches(ZipfLaw(1.0, 2.0))
    return {
        "batchtopk": lambda: batchtopk(acts),
        "mutual_choice": lambda: mutual_choice(acts, budget),
        "feature_choice, uniform": lambda: feature_choice(acts, uniform),
        "feature_choice, zipf": lambda: feature_choice(acts, zipf),
    }


def call_once(ready: Callable[[], None], name: str, size: tuple[int, int, int]) -> None:
    """Call once, what the first of anything loads being loaded before."""
    variants(8, 64, 2)[name]()
    call = variants(*size)[name]
    ready()
    call()


def measure(size: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Measure one size: a row for each rule."""
    seconds = time_rounds(variants(*size), rounds)
    peaks = peak_extra_bytes(call_once, *((name, size) for name in seconds))
    rows, d_sae, k = size
    return [
        {
            "rows": rows,
            "d_sae": d_sae,
            "k": k,
            "variant": name,
            "time_ratio_to_batchtopk": ratio(seconds[name], seconds["batchtopk"]),
            "peak_memory_in_batches": peak / (4 * rows * d_sae),
        }
        for name, peak in zip(seconds, peaks, strict=True)
    ]


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: list[dict[str, Any]] = []
    for size in SIZES:
        for row in measure(size, args.rounds):
            table.append(row)
            time = row["time_ratio_to_batchtopk"]
            print(
                f"{row['rows']:>5} x {row['d_sae']:>5}, k {row['k']}  {row['variant']:<24}x {time['median']:.2f}"
                f" ({time['q25']:.2f}-{time['q75']:.2f})  memory {row['peak_memory_in_batches']:.2f}",
                flush=True,
            )
    met = all(row["time_ratio_to_batchtopk"]["median"] <= GOAL for row in table)
    print(f"goal: at most {GOAL} times BatchTopK; {'met' if met else 'MISSED'}")
    if args.json:
        result = {"setting": setting("cpu"), "table": table}
        write_whole(args.json, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


if __name__ == "__main__":
    main()
