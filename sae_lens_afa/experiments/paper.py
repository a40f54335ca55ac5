"""The AFA paper's comparison: top-AFA, TopK and BatchTopK at several layers, over their grids (arXiv 2503.24277)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from typing_extensions import override

from sae_lens_afa.experiments.arms import Arm
from sae_lens_afa.experiments.model_sweep import LanguageModelSweep
from sae_lens_afa.experiments.presets import Several, changed
from sae_lens_afa.experiments.side_by_side import Training
from sae_lens_afa.experiments.tables import cell, markdown
from sae_lens_afa.experiments.text_source import DEMO, TextSource
from sae_lens_afa.loading.models import model_width

_COEFFICIENTS = (1 / 128, 1 / 64, 1 / 32, 1 / 24, 1 / 16)
_KS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_GPT2, _OPEN_WEB_TEXT = "gpt2", "Skylion007/openwebtext"
# The reference's losses are means over features; its auxiliary coefficient is 1/32 for all three.
_TOP_AFA = {"loss_reduction": "mean", "detach_aux_residual": False}
_TOPK = {"aux_loss_coefficient": 1 / 32}
_PUBLISHED_D_IN = 768
_NAMES = {"topafa": "top_afa", "topk": "topk", "batchtopk": "batchtopk"}


@dataclass(frozen=True, kw_only=True)
class PaperSweep(LanguageModelSweep):
    """SAEs at several layers of a language model, with the published numbers beside them in the report.

    Example:
        >>> from sae_lens_afa.experiments import paper_sweep
        >>> sweep = paper_sweep()
        >>> len(sweep.runs()), list(sweep.hooks), sweep.training.steps
        (23, ['layer 6', 'layer 7', 'layer 8'], 20001)
    """

    title: str = "The AFA paper's comparison"

    @override
    def published(self) -> list[Mapping[str, Any]]:
        own = self.source.model == _GPT2
        return [
            {
                **row,
                "stream": row["stream"] if own else f"published: GPT-2 small, {row['stream']}",
                "label": f"{row['label']}, published" if own else row["label"],
            }
            for row in published_runs()
        ]

    @override
    def sections(self) -> list[str]:
        best: dict[tuple[str, str], Mapping[str, Any]] = {}
        for row in published_runs():
            key = (row["stream"], row["label"])
            if key not in best or row["mse"] < best[key]["mse"]:
                best[key] = row
        lines = [
            [row["stream"], row["label"], row["setting"], cell(row["l0_mean"]), cell(row["mse"])]
            for row in best.values()
        ]
        return [
            "## Published",
            "GPT-2 small, resid_pre, d_in 768, d_sae 12,288, 20,001 steps of 4,096 tokens, one seed: of each grid the"
            " run of lowest MSE (last training step). All of these have L0 > d_in. They can be compared with the runs"
            " above only where model and sizes are the same.",
            markdown(["data", "SAE", "setting", "L0", "MSE"], lines),
        ]

    @override
    def notes(self) -> list[str]:
        return [
            *super().notes(),
            "What differs from the authors' code: SAELens clips gradients at norm 1 and chooses TopK's features by"
            " activation times decoder norm, where the authors keep decoder rows at norm 1 (top-AFA's are kept here"
            " too); SAELens' TopK and BatchTopK have an encoder bias, sum their losses over features, detach the"
            " residual of the auxiliary loss and let d_in / 2 dead latents take part in it. BatchTopK is judged with"
            " its saved threshold.",
        ]


def published_runs() -> list[dict[str, Any]]:
    """Return the 69 published runs: stream, label, setting, l0_mean, mse, d_in."""
    data = json.loads((files("sae_lens_afa.experiments") / "paper_l0_l2.json").read_text())
    return [
        {
            "stream": f"layer {layer}",
            "label": _NAMES[row["activation"]],
            "setting": f"k={row['k']}" if row["k"] else f"afa_coefficient={row['afa_coeff']:g}",
            "l0_mean": row["l0_norm"],
            "mse": row["l2_loss"],
            "d_in": _PUBLISHED_D_IN,
        }
        for layer, content in data["layers"].items()
        for row in content["rows"]
    ]


def _arms(coefficients: Sequence[float], ks: Sequence[int]) -> tuple[Arm, ...]:
    return (
        Arm("top_afa", "afa_coefficient", tuple(coefficients), _TOP_AFA),
        Arm("topk", "k", tuple(ks), _TOPK),
        Arm("batchtopk", "k", tuple(ks), _TOPK),
    )


def _demo_training(steps: int, batch_size: int) -> Training:
    return Training(
        steps=steps, batch_size=batch_size, lr=1e-3, adam_beta2=0.99, dead_feature_window=max(1, steps // 20),
        lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5,
    )  # fmt: skip


def _hooks(*layers: int) -> dict[str, str]:
    return {f"layer {layer}": f"blocks.{layer}.hook_resid_pre" for layer in layers}


PRESETS = {
    "paper": PaperSweep(
        source=TextSource(_GPT2, _OPEN_WEB_TEXT, 128), hooks=_hooks(6, 7, 8), d_in=_PUBLISHED_D_IN, d_sae=12_288,
        arms=_arms(_COEFFICIENTS, _KS),
        # The authors' latents are dead after 5 batches without firing; theirs is one seed, 49.
        training=Training(steps=20_001, batch_size=4096, lr=3e-4, adam_beta2=0.99, dead_feature_window=5),
        seeds=(49, 50, 51), test_tokens=65_536, ce_tokens=16_384, saes_per_group=23,
    ),
    "demo": PaperSweep(
        title="The AFA paper's comparison, preset demo",
        source=TextSource(DEMO, "", 128), hooks=_hooks(2, 3), d_in=192, d_sae=768,
        arms=_arms((1 / 128, 1 / 32, 1 / 16), (8, 32, 128, 320)), training=_demo_training(400, 256),
        seeds=(0, 1, 2), test_tokens=16_384, ce_tokens=4096, saes_per_group=18,
    ),
    "tiny": PaperSweep(
        title="The AFA paper's comparison, preset tiny",
        source=TextSource(DEMO, "", 32), hooks=_hooks(1), d_in=192, d_sae=64,
        arms=_arms((1 / 32,), (4,)), training=_demo_training(6, 64),
        seeds=(0, 1), test_tokens=256, ce_tokens=64, saes_per_group=2,
    ),
}  # fmt: skip


def paper_sweep(
    preset: str = "paper",
    *,
    layers: Sequence[int] = (),
    arms: Sequence[Arm] = (),
    seeds: Sequence[int] = (),
    steps: Several[int] = None,
    lr: Several[float] = None,
    model: str | None = None,
    dataset: str | None = None,
    saes_per_group: int | None = None,
    device: str = "cpu",
) -> PaperSweep:
    """Return the paper's sweep, or a smaller one on the bundled model.

    Args:
        preset: "paper" (GPT-2 small on OpenWebText, the exact sizes: for a GPU and the Hub), "demo" (the bundled model
            and text, minutes on two cores), "tiny" (seconds: says nothing about SAEs).
        layers, arms, seeds: In place of the preset's, where given.
        steps: Training steps in place of the preset's, one number or several: each run is made with each. All that
            the preset counts in steps changes in proportion.
        lr: Learning rate in place of the preset's, one or several: each run is made with each.
        model: In place of GPT-2 small, as for `load_language_model`; d_in and d_sae follow from its width.
        dataset: In place of OpenWebText, as for `load_text_dataset`.
        saes_per_group: Most SAEs that are trained side by side.
        device: Of model and SAEs.

    Raises:
        ValueError: an unknown preset, architecture or setting; nothing has been trained then.

    Example:
        >>> from sae_lens_afa.experiments import paper_sweep
        >>> sweep = paper_sweep("demo", layers=[2], steps=100)
        >>> dict(sweep.hooks)
        {'layer 2': 'blocks.2.hook_resid_pre'}
        >>> [run.name for run in sweep.runs()][:2]
        ['top_afa afa_coefficient=0.0078125', 'top_afa afa_coefficient=0.03125']
    """
    sweep = changed(
        PRESETS, preset, steps, lr, hooks=_hooks(*layers) or None, arms=tuple(arms), seeds=tuple(seeds),
        saes_per_group=saes_per_group, device=device,
    )  # fmt: skip
    for parameter, name, own in (("model", model, "model"), ("dataset", dataset, "text")):
        if name is not None and sweep.source.model == DEMO:
            raise ValueError(f"{parameter} {name!r}: the preset {preset!r} has its own {own}; leave it out.")
    source = replace(sweep.source, model=model or sweep.source.model, dataset=dataset or sweep.source.dataset)
    if model is not None:
        width = model_width(model)
        sweep = replace(sweep, d_in=width, d_sae=sweep.d_sae // sweep.d_in * width)
    return replace(sweep, source=source)
