"""Print the table of goals with what is measured here, and how cost grows: `python -m benchmarks`.

All of it in a quarter of an hour on one thread: `python -m benchmarks --json benchmarks/results/PROCESSOR.json --plot
docs/images/growth_cpu.png`. Results are named by their processor. Times are medians of ratios within a round, with
quartiles.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.goals import MEASUREMENTS, Row
from benchmarks.measuring import setting
from sae_lens_afa.files import write_whole


def main() -> None:
    """Measure what was chosen, print it, and write it on request."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [*MEASUREMENTS, "growth"]
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rows", nargs="+", choices=choices, default=choices, help="what to measure (all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11, help="rounds of which the median is taken")
    parser.add_argument("--growth-rounds", type=int, default=3, help="rounds of each size of growth; 0 leaves it out")
    parser.add_argument("--batch", type=int, help="tokens (512 on a CPU, 4096 on a GPU)")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=12288)
    parser.add_argument("--json", type=Path, help="write the measurements here as well")
    parser.add_argument("--plot", type=Path, help="draw growth here")
    args = parser.parse_args()
    args.batch = args.batch or (4096 if args.device.startswith("cuda") else 512)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    result = {
        "setting": setting(args.device),
        "sizes": {name: getattr(args, name) for name in ("batch", "d_in", "d_sae", "rounds")},
    }
    print(", ".join(f"{name} {value}" for name, value in (result["setting"] | result["sizes"]).items()))
    print(f"\n{'what':<58}{'measured':>10}{'quartiles':>18}{'goal':>10}{'stretch':>9}  verdict", flush=True)
    result["goals"] = []
    for name, measure in MEASUREMENTS.items():
        for row in measure(args) if name in args.rows else []:
            print(as_line(row), flush=True)
            result["goals"].append(row.to_dict())
    if "growth" in args.rows and args.growth_rounds > 0:
        from benchmarks import growth

        print("\na training step as it grows", flush=True)
        result["growth"] = growth.measure(args)
        if args.plot:
            growth.plot(result["growth"], args.plot)
    if args.json:
        write_whole(args.json, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


def as_line(row: Row) -> str:
    """Return a row of the table as text."""
    measured = "-" if row.measured is None else f"{row.measured['median']:.3f}"
    quartiles = "-" if row.measured is None else f"{row.measured['q25']:.3f} - {row.measured['q75']:.3f}"
    sign = ">=" if row.at_least else "<="
    stretch = "" if row.stretch is None else f"{row.stretch:g}"
    case = f"  ({row.case})" if row.case else ""
    return f"{row.what:<58}{measured:>10}{quartiles:>18}{f'{sign} {row.goal:g}':>10}{stretch:>9}  {row.verdict()}{case}"


if __name__ == "__main__":
    main()
