"""Judge the published gpt2-small-res-jb SAEs layer by layer, as in the AFA paper (arXiv 2503.24277, section 4).

Needs the network once, for GPT-2 small, the SAEs (150 MB a layer) and the text; some minutes on a GPU.

    python examples/evaluate_pretrained.py --output runs/gpt2-small-res-jb --device cuda

The paper reads 1,000 prompts of 128 OpenWebText tokens and judges the last token of each. Its layers count from 1:
its layer 9 is blocks.8.hook_resid_pre. All layers share each forward pass of the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_afa.hub import load_saes
from sae_lens_afa.reports import check_evaluation, evaluate_saes

RELEASE = "gpt2-small-res-jb"
CONTEXT = 128


def main() -> None:
    """Evaluate, print a column per layer, and say where metrics.json and the plots are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs") / RELEASE)
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(12)), help="hook layers, 0 to 11")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--dataset", default="Skylion007/openwebtext", help="a Hub dataset, or a text file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    check_evaluation(
        args.output, tokens=args.prompts, context_size=CONTEXT, device=args.device, overwrite=args.overwrite
    )
    saes = load_saes([], RELEASE, [f"blocks.{layer}.hook_resid_pre" for layer in args.layers], args.device)
    report = evaluate_saes(
        saes,
        args.output,
        dataset=args.dataset,
        context_size=CONTEXT,
        positions=[-1],
        tokens=args.prompts,
        device=args.device,
        overwrite=args.overwrite,
    )
    print(f"{report}\n")
    for metric in ("epsilon_lbo_median", "nmse_median"):
        medians = {name: result.to_dict()[metric] or 0.0 for name, result in report.results.items()}
        print(f"{metric}: best {min(medians, key=medians.__getitem__)}, worst {max(medians, key=medians.__getitem__)}")
    print("\n".join(["written:", *(f"  {path}" for path in report.files)]))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
