"""Would a Gram matrix of the dictionary pay in a pursuit's inference? `python -m benchmarks.gram`.

A later stage needs the correlations of what is left over, (z - f W) W^T. As one product they take d_in d_sae
multiplications a token; from those of the first stage and the rows of G = W W^T, which is made once,

    z W^T - sum over active i of f_i G[i]

they take L0 d_sae. Both are timed on the same codes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.measuring import ratio, setting, time_rounds
from sae_lens_afa.files import write_whole

# Tokens whose later correlations the kernel holds at a time.
BLOCK = 128


def main() -> None:
    """Measure, print, and write it on request."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gram", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=12288)
    parser.add_argument("--l0", type=int, nargs="+", default=[10, 30, 60])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the measurements here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(args.d_sae, args.d_in), dim=-1)
    gram = W @ W.T
    result = {"setting": setting("cpu"), "d_in": args.d_in, "d_sae": args.d_sae, "gram_bytes": gram.nbytes, "rows": []}
    for l0 in args.l0:
        active = torch.rand(BLOCK, args.d_sae).topk(l0).indices
        values = torch.rand(BLOCK, l0) + 0.5
        z = torch.einsum("tl,tld->td", values, W[active]) + 0.01 * torch.randn(BLOCK, args.d_in)
        first, rest = z @ W.T, z - torch.einsum("tl,tld->td", values, W[active])

        def product(rest: torch.Tensor = rest) -> torch.Tensor:
            return rest @ W.T

        def by_gram(active=active, values=values, first=first) -> torch.Tensor:
            taken = torch.nn.functional.embedding_bag(active, gram, per_sample_weights=values, mode="sum")
            return first - taken

        torch.testing.assert_close(product(), by_gram(), atol=1e-3, rtol=1e-3)
        seconds = time_rounds({"product": product, "gram": by_gram}, args.rounds, "cpu")
        found = ratio(seconds["gram"], seconds["product"])
        result["rows"].append({"l0": l0, "gram / product": found})
        spread = f"{found['q25']:.2f}-{found['q75']:.2f}"
        print(f"L0 {l0:>3}: by the Gram matrix {found['median']:.2f} of the product's time ({spread})", flush=True)
    if args.json:
        write_whole(args.json, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


if __name__ == "__main__":
    main()
