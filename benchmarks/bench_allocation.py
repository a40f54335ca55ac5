"""Time and memory of sharing out a batch's matches, beside SAELens' BatchTopK at the same size and budget.

    python benchmarks/bench_allocation.py [--threads 1] [--json FILE]

Variants run interleaved in one process; ratios are taken within a round, so that a machine whose speed drifts does
not matter. Memory is the peak of resident memory above that before the call, as a multiple of one [rows, d_sae]
float32, measured in a process of its own for each variant; the output itself is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sae_lens import __version__ as sae_lens_version
from sae_lens.saes.batchtopk_sae import BatchTopK
from torch import Tensor

from sae_lens_afa._support import write_whole
from sae_lens_afa.saes._matching import feature_choice, mutual_choice
from sae_lens_afa.saes.zipf import ZipfLaw, allocate_matches, expected_densities

SIZES = [(1024, 12_288, 32), (4096, 12_288, 32), (4096, 4096, 64), (512, 32_768, 64)]
VARIANTS = ("batchtopk", "mutual_choice", "feature_choice uniform", "feature_choice zipf")


def variants(rows: int, d_sae: int, k: int) -> dict[str, Callable[[], object]]:
    """Each rule as a call on the same Gaussian pre-activations; allocations are made beforehand, as in training."""
    acts = torch.randn(rows, d_sae, generator=torch.Generator().manual_seed(0))
    batchtopk, budget = BatchTopK(k), k * rows

    def matches(law: ZipfLaw) -> Tensor:
        ranked = allocate_matches(expected_densities(law, d_sae, k), budget, rows)
        return ranked[torch.randperm(d_sae, generator=torch.Generator().manual_seed(1))]

    uniform, zipf = matches(ZipfLaw(0.0)), matches(ZipfLaw(1.0, 2.0))
    calls: tuple[Callable[[], object], ...] = (
        lambda: batchtopk(acts),
        lambda: mutual_choice(acts, budget),
        lambda: feature_choice(acts, uniform),
        lambda: feature_choice(acts, zipf),
    )
    return dict(zip(VARIANTS, calls, strict=True))


def resident() -> int:
    """Resident memory of this process in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_memory(call: Callable[[], object]) -> int:
    """Peak of resident memory while `call` runs, above what it was before, sampled every half millisecond."""
    done, before, peak = threading.Event(), resident(), 0

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(5e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call()
    peak = max(peak, resident())
    done.set()
    watcher.join()
    del result
    return peak - before


def memory_in_own_process(size: tuple[int, int, int], name: str) -> float:
    """What `peak_memory` finds in a fresh process, where no earlier call has left memory to be used again."""
    command = [sys.executable, __file__, "--memory-of", name, *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / (4 * size[0] * size[1])


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and range of the round-by-round ratio."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def measure(size: tuple[int, int, int], rounds: int) -> list[dict[str, object]]:
    """One size: a row for each variant."""
    calls = variants(*size)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for counted in range(-1, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
    rows, d_sae, k = size
    return [
        {
            "rows": rows,
            "d_sae": d_sae,
            "k": k,
            "variant": name,
            "milliseconds": 1000 * statistics.median(seconds[name]),
            "time_ratio_to_batchtopk": ratio(seconds[name], seconds["batchtopk"]),
            "peak_memory_in_batches": memory_in_own_process(size, name),
        }
        for name in calls
    ]


def processor() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        name, *size = args.memory_of
        variants(8, 64, 2)[name]()  # what the first call of anything loads is not counted
        print(peak_memory(variants(*map(int, size))[name]))
        return
    table = [row for size in SIZES for row in measure(size, args.rounds)]
    for row in table:
        time_ratio = row["time_ratio_to_batchtopk"]
        assert isinstance(time_ratio, dict)
        print(
            f"{row['rows']:>5} x {row['d_sae']:>5}, k {row['k']}  {row['variant']:<23}{row['milliseconds']:>8.0f} ms"
            f"  x{time_ratio['median']:.2f} ({time_ratio['min']:.2f}-{time_ratio['max']:.2f})"
            f"  memory {row['peak_memory_in_batches']:.2f}"
        )
    if args.json:
        versions = {"torch": torch.__version__, "sae_lens": sae_lens_version, "python": platform.python_version()}
        result = {"threads": args.threads, "processor": processor(), "versions": versions, "table": table}
        write_whole(args.json, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


if __name__ == "__main__":
    main()
