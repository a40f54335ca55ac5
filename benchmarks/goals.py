"""Table of goals: each row measures one ratio, or says that it was not measured."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.topk_sae import TopK

from benchmarks import cases
from benchmarks.measuring import Seconds, peak_extra_bytes, ratio, spread, time_rounds
from sae_lens_afa.loading.inference import inference_view
from sae_lens_afa.selection import norm_matching_topk


@dataclass
class Row:
    """Row of the table: what is measured, the worst value found, and the goal it is held against."""

    what: str
    goal: float
    stretch: float | None
    at_least: bool = False
    measured: dict[str, float] | None = None  # median and quartiles
    case: str = ""
    others: dict[str, Any] = field(default_factory=dict)

    def verdict(self) -> str:
        """Say whether the goal, or even the stretch goal, holds."""
        if self.measured is None:
            return "not measured"
        for name, bound in (("stretch", self.stretch), ("goal", self.goal)):
            if bound is not None and (
                self.measured["median"] >= bound if self.at_least else self.measured["median"] <= bound
            ):
                return name
        return "MISSED"

    def keep_worst(self, case: str, found: dict[str, float]) -> None:
        """Take the value of a case if it is the worst so far; keep all of them for the JSON."""
        self.others[case] = found
        sign = -1 if self.at_least else 1
        if self.measured is None or sign * found["median"] > sign * self.measured["median"]:
            self.measured, self.case = found, case

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it."""
        return {**asdict(self), "verdict": self.verdict()}


def selection(args: Namespace) -> list[Row]:
    """Measure the activation alone: beside the matmuls of the SAE, SAELens' activations, and a full argsort."""
    rows = [
        Row("selection / two matmuls", 0.10, 0.05),
        Row(f"selection / SAELens TopK({cases.K})", 1.0, 0.5),
        Row(f"selection / SAELens BatchTopK({cases.K})", 1.0, None),
    ]
    fallback = Row("argsort / selection without compiled extras", 2.5, 4.0, at_least=True)
    on_gpu = Row("selection on GPU, 4096 x 12288 float32, ms", 0.4, 0.19)
    x, W = torch.randn(args.batch, args.d_in, device=args.device), torch.randn(args.d_in, args.d_sae)
    W_enc, W_dec = W.to(args.device), W.T.contiguous().to(args.device)
    topk, batchtopk = TopK(cases.K), BatchTopK(cases.K)
    for positive, l0 in cases.regimes(args.d_sae):
        acts, target, norm = cases.selection_inputs(args.batch, args.d_sae, positive, l0, args.device)
        case = f"{positive:.0%} positive, L0 {l0}"
        bfloat16 = acts.bfloat16()
        seconds = time_rounds(
            {
                "auto": lambda a=acts, t=target, n=norm: norm_matching_topk(a, t, n),
                "torch": lambda a=acts, t=target, n=norm: norm_matching_topk(a, t, n, backend="torch"),
                "ties": lambda a=bfloat16, t=target: norm_matching_topk(a, t, backend="torch"),
                "argsort": lambda a=acts: torch.argsort(a, dim=-1, descending=True),
                "topk": lambda a=acts: topk(a),
                "batchtopk": lambda a=acts: batchtopk(a),
                "matmuls": lambda: (x @ W_enc) @ W_dec,
            },
            args.rounds,
            args.device,
        )
        for row, other in zip(rows, ("matmuls", "topk", "batchtopk"), strict=True):
            row.keep_worst(case, ratio(seconds["auto"], seconds[other]))
        fallback.keep_worst(case, ratio(seconds["argsort"], seconds["torch"]))
        fallback.keep_worst(f"{case}, bfloat16 with ties", ratio(seconds["argsort"], seconds["ties"]))
        if args.device.startswith("cuda"):
            on_gpu.keep_worst(case, spread([1e3 * s for s in seconds["auto"]]))
    return [*rows, fallback, on_gpu]


def step(args: Namespace) -> list[Row]:
    """Measure forward and backward of one training step beside SAELens' own architectures."""
    x = torch.randn(args.batch, args.d_in, device=args.device)
    peers = cases.peers(args.d_in, args.d_sae, args.device)
    ours = {l0: cases.top_afa(args.d_in, args.d_sae, min(l0, args.d_sae // 2), x) for l0 in (95, 2000, 5000)}
    variants = {name: cases.train_step(sae, x) for name, sae in peers.items()}
    variants |= {str(l0): cases.train_step(sae, x) for l0, sae in ours.items()}
    levels = {l0: min(l0, args.d_sae // 2) for l0 in ours}
    thresholds = {l0: cases.afa_threshold(args.d_in, args.d_sae, n, args.device) for l0, n in levels.items()}
    variants |= {f"threshold {l0}": cases.train_step(sae, x) for l0, sae in thresholds.items()}
    variants["relu"] = cases.train_step(cases.relu(args.d_in, args.d_sae, args.device), x)
    seconds = time_rounds(variants, args.rounds, args.device)
    topk = f"training step / SAELens TopK({cases.K})"
    rows = [Row(f"{topk}, L0 2000", 1.0, 0.85), Row(f"{topk}, L0 <= 100", 0.5, 0.3), Row(f"{topk}, L0 5000", 1.0, None)]
    for row, l0 in zip(rows, (2000, 95, 5000), strict=True):
        _beside(row, seconds, str(l0), list(peers))
    beside_relu = Row("afa_threshold training step / SAELens ReLU", 1.0, 0.5)
    for l0 in thresholds:
        beside_relu.keep_worst(f"L0 {l0}", ratio(seconds[f"threshold {l0}"], seconds["relu"]))
    on_gpu = Row(f"training step on GPU / SAELens TopK({cases.K})", 1.0, 0.5)
    if args.device.startswith("cuda"):
        for l0 in (95, 2000):
            on_gpu.keep_worst(f"L0 {l0}", ratio(seconds[str(l0)], seconds["topk"]))
    return [*rows, beside_relu, on_gpu]


def inference(args: Namespace) -> list[Row]:
    """Measure encode and decode, without gradient."""
    x = torch.randn(args.batch, args.d_in, device=args.device)
    ours = inference_view(cases.top_afa(args.d_in, args.d_sae, 95, x))
    saes = {"top_afa": ours, **cases.inference_peers(args.d_in, args.d_sae, args.device)}
    with torch.no_grad():
        variants = {name: lambda sae=sae: sae.decode(sae.encode(x)) for name, sae in saes.items()}
        seconds = time_rounds(variants, args.rounds, args.device)
    row = Row(f"encode + decode / SAELens TopK({cases.K}), L0 <= 100", 0.6, 0.5)
    _beside(row, seconds, "top_afa", ["topk", "jumprelu"])
    return [row]


def pursuit(args: Namespace) -> list[Row]:
    """Measure afa_pursuit on tokens of 30 of its features, beside SAELens' TopK and matching pursuit."""
    sae = cases.afa_pursuit(args.d_in, args.d_sae, args.device)
    x = cases.tokens_of_features(sae, args.batch, 30)
    plain, topk = inference_view(sae), cases.inference_peers(args.d_in, args.d_sae, args.device)["topk"]
    matching = cases.matching_pursuit(sae, 30)
    with torch.no_grad():
        l0 = torch.count_nonzero(plain.encode(x), dim=-1).double().mean().item()
        variants = {"ours": lambda: plain.encode(x), "topk": lambda: topk.encode(x)}
        encode = time_rounds(variants, args.rounds, args.device)
        slow = {"ours": lambda: plain.encode(x), "matching": lambda: matching.encode(x)}
        slowly = time_rounds(slow, min(args.rounds, 3), args.device)
    peer = cases.topk(args.d_in, args.d_sae, args.device)
    steps = time_rounds({"ours": cases.train_step(sae, x), "topk": cases.train_step(peer, x)}, args.rounds, args.device)
    case = f"L0 {l0:.1f}"
    rows = [
        Row(f"afa_pursuit training step / SAELens TopK({cases.K})", 1.0, 0.6),
        Row(f"afa_pursuit encode / SAELens TopK({cases.K}) encode", 4.0, 2.0),
        Row("SAELens matching pursuit(30) encode / afa_pursuit encode", 10.0, None, at_least=True),
    ]
    found = [(steps["ours"], steps["topk"]), (encode["ours"], encode["topk"]), (slowly["matching"], slowly["ours"])]
    for row, (ours, other) in zip(rows, found, strict=True):
        row.keep_worst(case, ratio(ours, other))
    return [
        *rows,
        _peak(
            "peak extra memory of afa_pursuit's encode / [batch, d_sae]", 2.0, pursue_once, args, args.d_in, args.d_sae
        ),
    ]


def pursue_once(ready: Callable[[], None], tokens: int, d_in: int, d_sae: int, device: str) -> None:
    """Encode once by pursuit, the kernels compiled before."""
    sae = inference_view(cases.afa_pursuit(d_in, d_sae, device))
    x = cases.tokens_of_features(sae, tokens, 30)
    with torch.no_grad():
        sae.encode(x[:32])
        ready()
        sae.encode(x)


def memory(args: Namespace) -> list[Row]:
    """Measure peak memory of the selection beside its input, the output included."""
    return [_peak("peak extra memory of selection / one [batch, d_sae]", 1.1, select_once, args, args.d_sae)]


def _peak(what: str, goal: float, call: Callable[..., None], args: Namespace, *sizes: int) -> Row:
    """Return a row of the peak memory of call(ready, tokens, *sizes, device), in float32 [tokens, d_sae]."""
    row = Row(what, goal, None)
    tokens = max(args.batch, 2048)  # so many that what libraries allocate once does not count
    (extra,) = peak_extra_bytes(call, (tokens, *sizes, args.device))
    share = extra / (4 * tokens * args.d_sae)
    row.keep_worst(f"{tokens} rows", {"median": share, "q25": share, "q75": share})
    return row


def select_once(ready: Callable[[], None], rows: int, d_sae: int, device: str) -> None:
    """Select once, the kernels compiled before."""
    acts, target, norm = cases.selection_inputs(rows, d_sae, 0.5, 300, device)
    norm_matching_topk(acts[:32], target[:32], norm)
    ready()
    norm_matching_topk(acts, target, norm)


def _beside(row: Row, seconds: Seconds, name: str, others: list[str]) -> None:
    """Take the ratio to TopK as what is measured, with those to the others and the time itself beside it."""
    row.measured = ratio(seconds[name], seconds["topk"])
    row.others = {f"/ {other}": ratio(seconds[name], seconds[other]) for other in others}
    row.others["ms"] = spread([1e3 * s for s in seconds[name]])
    row.case = ", ".join(f"/ {other} {row.others[f'/ {other}']['median']:.2f}" for other in others if other != "topk")


MEASUREMENTS: dict[str, Callable[[Namespace], list[Row]]] = {
    "selection": selection,
    "step": step,
    "inference": inference,
    "pursuit": pursuit,
    "memory": memory,
}
