"""Cost of AFA metrics beside the SAE's own encode and decode: `python -m benchmarks.evals [--json FILE]`.

Times are interleaved, so that a machine's drift falls on all of them alike; the median of the ratios counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from benchmarks.measuring import setting, timed
from sae_lens_afa.evals import AFAMetrics
from sae_lens_afa.evals.token_norms import Raw, decoder_norms, token_blocks

D_IN, D_SAE = 768, 24576
GOAL = 0.10


def main() -> None:
    """Time, print the table and write it as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=None, help="tokens per batch (4096 on a GPU, 512 on a CPU)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    tokens = args.tokens or (4096 if args.device.startswith("cuda") else 512)
    rows = [
        row
        for dtype in (torch.float32, torch.bfloat16)
        for name, sae in (
            ("standard", StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))),
            ("topk 64", TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=64))),
        )
        # bfloat16 products are emulated on most CPUs: a ratio to them says nothing.
        if dtype == torch.float32 or args.device != "cpu"
        for row in [measure(name, sae.to(device=args.device, dtype=dtype), tokens, args.repeats)]
    ]
    print(f"d_in {D_IN}, d_sae {D_SAE}, {tokens} tokens per batch, {args.device}, {torch.get_num_threads()} threads")
    print(f"{'SAE':<10} {'dtype':<9} {'encode+decode':>14} {'AFA metrics':>12} {'added':>8} {'5-95 %':>15}")
    for row in rows:
        low, high = row["ratio_q05"], row["ratio_q95"]
        print(
            f"{row['sae']:<10} {row['dtype']:<9} {row['sae_ms']:>11.2f} ms {row['afa_ms']:>9.2f} ms"
            f" {row['ratio']:>7.1%}  {low:>6.1%} -{high:>6.1%}"
        )
    print(f"goal: at most {GOAL:.0%} added; {'met' if all(row['ratio'] <= GOAL for row in rows) else 'MISSED'}")
    if args.json:
        args.json.write_text(
            json.dumps(
                {"setting": setting(args.device), "device": args.device, "tokens": tokens, "rows": rows}, indent=2
            )
            + "\n"
        )


@torch.no_grad()
def measure(name: str, sae: StandardSAE | TopKSAE, tokens: int, repeats: int) -> dict[str, str | float]:
    """Time encode and decode, then the metrics of what they gave, `repeats` times in turn."""
    x = torch.randn(tokens, D_IN, device=sae.device, dtype=sae.dtype)
    metrics, norms, index = AFAMetrics(D_SAE), decoder_norms(sae.W_dec), torch.arange(tokens, device=sae.device)

    def code() -> tuple[torch.Tensor, torch.Tensor]:
        acts = sae.encode(x)
        return acts, sae.decode(acts)

    def judge(acts: torch.Tensor, recons: torch.Tensor) -> None:
        # These SAEs normalise nothing: what they decode is what the hook point has, and both are summed, as for users.
        for block in token_blocks(x, acts, norms, sae.b_dec, recons, None, index, raw=Raw(x, recons)):
            metrics.add(block)

    for _ in range(3):
        judge(*code())
    sae_times, afa_times = [], []
    for _ in range(repeats):
        (acts, recons), seconds = timed(sae.device, code)
        sae_times.append(seconds)
        afa_times.append(timed(sae.device, lambda acts=acts, recons=recons: judge(acts, recons))[1])
    ratios = sorted(afa / own for afa, own in zip(afa_times, sae_times, strict=True))
    return {
        "sae": name,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "sae_ms": 1e3 * statistics.median(sae_times),
        "afa_ms": 1e3 * statistics.median(afa_times),
        "ratio": statistics.median(ratios),
        "ratio_q05": ratios[int(0.05 * len(ratios))],
        "ratio_q95": ratios[int(0.95 * len(ratios))],
    }


if __name__ == "__main__":
    main()
