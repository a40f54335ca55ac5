"""Growth of time and peak memory with the number of features and of tokens, and the plot of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from benchmarks import cases
from benchmarks.measuring import peak_extra_bytes, spread, time_rounds
from sae_lens_afa.files import write_whole
from sae_lens_afa.plots.styles import styles_of

D_SAE, BATCH = (12288, 24576, 65536), (512, 1024, 2048, 4096, 8192)
NAMES = {"top_afa": "top-AFA, L0 95", "topk": f"SAELens TopK({cases.K})"}


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Return a point for each size: a training step's time and its peak memory beside the SAE's own."""
    sizes = [(d_sae, BATCH[0]) for d_sae in D_SAE] + [(D_SAE[0], batch) for batch in BATCH[1:]]
    return [_point(args, d_sae, batch) for d_sae, batch in sizes]


def _point(args: Namespace, d_sae: int, batch: int) -> dict[str, Any]:
    x = torch.randn(batch, args.d_in, device=args.device)
    steps = {name: cases.train_step(_sae(name, args.d_in, d_sae, x), x) for name in NAMES}
    seconds = time_rounds(steps, args.growth_rounds, args.device)
    steps.clear()
    found = peak_extra_bytes(step_once, *((name, args.d_in, d_sae, batch, args.device) for name in NAMES))
    peaks = dict(zip(NAMES, found, strict=True))
    point = {
        "d_sae": d_sae,
        "batch": batch,
        "ms": {name: spread([1e3 * s for s in seconds[name]]) for name in NAMES},
        "peak_bytes": peaks,
    }
    cells = ", ".join(f"{name} {point['ms'][name]['median']:.0f} ms {peaks[name] / 2**20:.0f} MiB" for name in NAMES)
    print(f"  d_sae {d_sae}, {batch} tokens: {cells}", flush=True)
    return point


def _sae(name: str, d_in: int, d_sae: int, x: torch.Tensor) -> Any:
    if name == "topk":
        return cases.topk(d_in, d_sae, str(x.device))
    return cases.top_afa(d_in, d_sae, 95, x)


def step_once(ready: Callable[[], None], name: str, d_in: int, d_sae: int, batch: int, device: str) -> None:
    """Take one training step, after one of a few tokens."""
    x = torch.randn(batch, d_in, device=device)
    sae = _sae(name, d_in, d_sae, x)
    cases.train_step(sae, x[:64])()
    sae.zero_grad(set_to_none=True)
    ready()
    cases.train_step(sae, x)()


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against d_sae (512 tokens) and against tokens (d_sae 12288)."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    styles = styles_of(NAMES)
    by_width = [p for p in points if p["batch"] == BATCH[0]]
    by_batch = [p for p in points if p["d_sae"] == D_SAE[0]]
    for column, (key, chosen, title) in enumerate(
        [("d_sae", by_width, f"{BATCH[0]} tokens"), ("batch", by_batch, f"d_sae {D_SAE[0]}")]
    ):
        for name, label in NAMES.items():
            at = [p[key] for p in chosen]
            line: Any = {"label": label, "color": styles[name].color, "marker": styles[name].marker}
            axes[0, column].plot(at, [p["ms"][name]["median"] / 1e3 for p in chosen], **line)
            axes[1, column].plot(at, [p["peak_bytes"][name] / 2**30 for p in chosen], **line)
        axes[0, column].set(title=title, ylabel="training step, s", ylim=(0, None))
        axes[1, column].set(xlabel="d_sae" if key == "d_sae" else "tokens", ylabel="peak memory, GiB", ylim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(NAMES), frameon=False)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=150))
    plt.close(figure)
