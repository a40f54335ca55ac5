"""Evaluations and collections that several processes share, or one does alone."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sae_lens_afa import AFAMetrics, evaluate_activations, features, run_afa_evals, torchrun
from sae_lens_afa.cli import main
from sae_lens_afa.demo import load_model, load_text
from sae_lens_afa.distributed import shared_evaluation
from sae_lens_afa.evals import judge
from sae_lens_afa.evals.hook_reader import HookReader
from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page import companions, token_view
from sae_lens_afa.feature_page.collected import collect
from sae_lens_afa.feature_page.content import page_content

CONTEXT, PROMPTS = 16, 3
BATCH = CONTEXT * PROMPTS
HOOKS = ("blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out")
# Of whole rounds of two and three ranks; with a last round in which some ranks have less to do, or nothing.
_RUN = ("--demo", "--tokens", "700", "--batch-size-prompts", "3")
VERBS = {"eval": (*_RUN, "--per-token", "--cross-entropy-tokens", "200"), "features": _RUN}
LENGTHS = {
    "whole": 12 * BATCH,
    "one over": 6 * BATCH + 1,
    "one short": 7 * BATCH - 1,
    "less than a batch": 5,
    "a rank without any": 4,
}


def small_sae(hook: str, seed: int, **metadata: Any) -> SAE[Any]:
    torch.manual_seed(seed)
    about = SAEMetadata(hook_name=hook, context_size=CONTEXT, prepend_bos=True, **metadata)
    sae = TopKSAE(TopKSAEConfig(d_in=192, d_sae=48, k=5, metadata=about))
    sae.b_enc.data.normal_(std=0.1)
    sae.W_dec.data *= torch.rand(48, 1) + 0.5
    return sae


def store_for(sae: SAE[Any], model: Any, characters: int = 10_000) -> ActivationsStore:
    text = Dataset.from_dict({"text": [load_text().held_out[0][:characters]]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ActivationsStore.from_sae(
            model, sae, text, streaming=False, store_batch_size_prompts=PROMPTS, total_tokens=10
        )


def evaluations(folder: Path) -> dict[str, Any]:
    """Do with all ranks, or alone, what `tests/distributed/test_shared_evaluation.py` compares."""
    torch.set_num_threads(1)  # as every rank: what is compared is to be of the same sums
    model = load_model()
    saes = {
        "plain": small_sae(HOOKS[0], 1),
        "another hook": small_sae(HOOKS[1], 2),
        "without special tokens": small_sae(HOOKS[0], 3, exclude_special_tokens=True),
        "few positions": small_sae(HOOKS[0], 4, seqpos_slice=(-2, None)),
    }
    first = saes["plain"]
    judge.CALIBRATION_TOKENS = 4 * BATCH - 20  # within a round, for two ranks and for three
    companions._TOKENS, token_view.TOKENS = 100, 4 * BATCH - 20

    def run(judged: Any = first, characters: int = 10_000, **options: Any) -> Any:
        store = store_for(first, model, characters)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = run_afa_evals(judged, store, model, progress=False, **options)
        named = found if isinstance(judged, dict) else {"": found}
        told = [str(warning.message) for warning in caught if "the text ended" in str(warning.message)]
        # What is left to read is the same for whoever reads on.
        after = store.get_batch_tokens(1).flatten()[:5].tolist() if told == [] and torchrun.rank() == 0 else None
        return {name: described(result) for name, result in named.items()}, told, after

    with shared_evaluation():
        found = {name: run(tokens=length, cross_entropy_tokens=3 * BATCH) for name, length in LENGTHS.items()}
        found["several"] = run(saes, tokens=5 * BATCH, cross_entropy_tokens=BATCH)
        for name, tokens in (("outliers", 8 * BATCH), ("few for outliers", 2 * BATCH)):
            found[name] = run(tokens=tokens, outlier_norm_multiple=1.1)
        found["sampled"] = run(tokens=8 * BATCH, max_exact_tokens=100)
        found["end of the text"] = run(tokens=10**6, characters=1000)
        found["refused"] = refusal(lambda: run(tokens=BATCH, exclude_special_tokens=list(range(10**5))))
        collected_into(folder, first, model)
        report = features(first, store_for(first, model), model, folder / "page", tokens=5 * BATCH, progress=False)
        found["page"] = [report.n_tokens, report.table["density"].tolist()]
        rows = torch.randn(300, 192, generator=torch.Generator().manual_seed(0))
        for _ in range(1 + torchrun.rank()):  # each as often as it likes
            own = evaluate_activations(first, rows, outlier_norm_multiple=1.05)
        found["own activations"] = [own.n_tokens, own.without_outliers.n_tokens]
    found["gathered"] = gathered() if torchrun.started_this() else None
    found["commands"] = commands(folder)
    return found


def described(result: Any) -> dict[str, Any]:
    """Return all of a result as JSON can hold it."""
    kept = result.without_outliers
    return {
        "metrics": result.to_dict(), "tokens": result.tokens.to_dict("list"),
        "without outliers": None if kept is None else described(kept),
    }  # fmt: skip


def refusal(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def collected_into(folder: Path, sae: SAE[Any], model: Any) -> None:
    """Save the arrays of pages, which are what the page shows."""
    space, store = SAESpace(sae), store_for(sae, model)
    options: Any = {
        "batch_size_prompts": None, "positions": None, "exclude_special_tokens": None, "seed": 3, "progress": False,
    }  # fmt: skip
    hook = HookReader(sae, store, model)
    for name, tokens in LENGTHS.items():
        collected = collect(space, store_for(sae, model), model, tokens=tokens, **options)
        arrays = page_content(space, hook, model, collected).arrays
        np.savez(folder / f"{name}-{os.environ.get('RANK', 'alone')}.npz", **arrays)


def gathered() -> dict[str, Any]:
    """Join metrics that each rank has of its own tokens, as a script of torch.distributed does."""
    rank, size = dist.get_rank(), dist.get_world_size()
    metrics = AFAMetrics(8)
    update(metrics, tokens_of(size)[rank::size])
    joined, own = metrics.all_gather(), metrics.compute().to_dict()
    assert metrics.compute().to_dict() == own, "all_gather changed what it was asked of"
    return joined.compute().to_dict()


def commands(folder: Path) -> dict[str, str]:
    """Call `eval` and `features` as torchrun does, or alone; return what they print."""
    said: dict[str, str] = {}
    for verb, options in VERBS.items():
        out = io.StringIO()
        sys.argv = ["sae-lens-afa", verb, *options, "--sae", "sae", "--output", verb]
        with contextlib.chdir(folder), contextlib.redirect_stdout(out):
            main()
        said[verb] = out.getvalue()
    return said


def tokens_of(size: int) -> torch.Tensor:
    return torch.randn(50 * size + 1, 8, generator=torch.Generator().manual_seed(7))


def update(metrics: AFAMetrics, rows: torch.Tensor) -> None:
    acts = rows.relu()
    metrics.update(rows, acts, torch.eye(8), torch.full((8,), 0.1), acts + 0.1)
