"""Tokens per second of one process and of several, by what they do: `python -m benchmarks.scaling`.

Every process has one thread. A training is a whole run (language model or disk, mixing, training step), without its
start; an evaluation is `run_afa_evals` from the language model to the result. Rounds of one and of several processes
alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import ratio, setting
from sae_lens_afa.files import write_whole

# A training, by where its activations come from, or an evaluation.
WORK = ("live", "cached", "evaluation")
_CONTEXT, _D_IN, _HOOK = 128, 192, "blocks.2.hook_resid_pre"
# Steps that are not timed: kernels are compiled and the buffer is filled.
_BEFORE = 3


def main() -> None:
    """Measure, print, and write it on request."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--architecture", nargs="+", default=["afa_pursuit", "top_afa", "topk"])
    parser.add_argument("--json", type=Path, help="write the measurements here as well")
    args = parser.parse_args()
    if "RANK" in os.environ:
        _work(json.loads(os.environ["SCALING_WORK"]))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = {"steps": args.steps, "batch": args.batch, "d_sae": args.d_sae, "folder": folder}
        _started(1, {**work, "cache": True, "architecture": "topk"})
        for architecture in args.architecture:
            for kind in WORK:
                job = {**work, "architecture": architecture, "work": kind}
                found = [[_started(n, job) for n in (1, args.ranks)] for _ in range(args.rounds)]
                one, several = ([pair[i]["seconds"] for pair in found] for i in (0, 1))
                row: dict[str, Any] = {
                    "architecture": architecture, "work": kind, "speedup": ratio(one, several),
                    "tokens per second of one": args.batch * args.steps / min(one),
                    **{name: value for name, value in found[0][1].items() if name != "seconds"},
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{architecture:12} {kind:10}  {args.ranks} processes: {row['speedup']['median']:.2f} x the tokens"
                    f" per second of one ({row['tokens per second of one']:,.0f})", flush=True,
                )  # fmt: skip
    if args.json:
        result = {"setting": setting("cpu"), "ranks": args.ranks, "batch": args.batch, "d_in": _D_IN, "rows": rows}
        result["d_sae"] = args.d_sae
        write_whole(args.json, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


def _started(n: int, work: dict[str, Any]) -> dict[str, Any]:
    """Let torchrun do some work on n processes of one thread, and return what rank 0 found."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "SCALING_WORK": json.dumps(work)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    done = subprocess.run([*command, "-m", "benchmarks.scaling"], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(Path(work["folder"], "found.json").read_text(encoding="utf-8"))


def _work(work: dict[str, Any]) -> None:
    """Train or judge as told, and write the seconds of what is timed."""
    import torch.distributed as dist
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.registry import get_sae_training_class

    from sae_lens_afa.demo import load_model, load_text
    from sae_lens_afa.distributed import DistributedSAETrainingRunner
    from sae_lens_afa.loading.text import text_dataset

    # A pursuit's dictionary grows in the first part of a run, which in a run this short would be each step.
    settings: dict[str, Any] = {"topk": {"k": 32}, "afa_pursuit": {"growth_steps": 0}}.get(work["architecture"], {})
    cached: dict[str, Any] = {}
    if work.get("work") == "cached":
        cached = {"use_cached_activations": True, "cached_activations_path": f"{work['folder']}/cache"}
    cfg = LanguageModelSAERunnerConfig(
        sae=get_sae_training_class(work["architecture"])[1](d_in=_D_IN, d_sae=work["d_sae"], **settings),
        hook_name=_HOOK, streaming=False, context_size=_CONTEXT, is_dataset_tokenized=False, lr=1e-3,
        training_tokens=work["batch"] * (work["steps"] + _BEFORE), train_batch_size_tokens=work["batch"],
        store_batch_size_prompts=32, n_batches_in_buffer=128, n_checkpoints=0, checkpoint_path=None, output_path=None,
        logger=LoggingConfig(log_to_wandb=False), verbose=False, **cached,
    )  # fmt: skip
    runner = DistributedSAETrainingRunner(
        cfg, override_model=load_model(), override_dataset=text_dataset(load_text().train)
    )
    if work.get("cache"):
        _write_cache(runner.activations_store, Path(work["folder"], "cache"))
        found: dict[str, Any] = {}
    elif work["work"] == "evaluation":
        found = _timed_evaluation(runner, work["batch"] * work["steps"])
    else:
        found = _timed_training(runner)
    if runner.ranks.is_first:
        Path(work["folder"], "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _write_cache(store: Any, folder: Path) -> None:
    """Write activations as SAELens' cache has them."""
    import torch
    from datasets import Array2D, Dataset, Features

    acts = torch.cat([store.get_activations(store.get_batch_tokens(32)) for _ in range(20)]).numpy()
    features = Features({_HOOK: Array2D(shape=(_CONTEXT, _D_IN), dtype="float32")})
    Dataset.from_dict({_HOOK: acts}, features=features).save_to_disk(str(folder))


def _timed_evaluation(runner: Any, tokens: int) -> dict[str, Any]:
    """Judge the runner's SAE, and return the seconds that it took, once kernels are compiled."""
    from sae_lens_afa import run_afa_evals
    from sae_lens_afa.distributed import shared_evaluation

    with shared_evaluation():
        for n in (_CONTEXT * 64, tokens):
            start = time.perf_counter()
            run_afa_evals(runner.sae, runner.activations_store, runner.model, tokens=n, progress=False)
    return {"seconds": time.perf_counter() - start}


def _timed_training(runner: Any) -> dict[str, Any]:
    """Run, and return the seconds from the end of the last step that is not timed, and what the others were told."""
    import torch.distributed as dist

    times: list[float] = []
    told = {"all_reduce": 0, "all_gather": 0, "broadcast": 0}
    for name in told:
        setattr(dist, name, _counting(told, name, getattr(dist, name), times))
    prepare = runner.prepare

    def prepared(trainer: Any) -> None:
        prepare(trainer)
        step = trainer.step

        def clocked(batch: Any) -> Any:
            output = step(batch)
            times.append(time.perf_counter())
            return output

        trainer.step = clocked

    runner.prepare = prepared
    runner.run()
    n_steps = len(times) - _BEFORE
    return {
        "seconds": times[-1] - times[_BEFORE - 1], "bytes per step": {name: n / n_steps for name, n in told.items()},
        "parameter bytes": sum(p.numel() * p.element_size() for p in runner.sae.parameters()),
    }  # fmt: skip


def _counting(told: dict[str, int], name: str, operation: Callable[..., Any], times: Sequence[float]) -> Any:
    """Return an operation among ranks that adds up the bytes of the tensors that it is given."""

    def counted(first: Any, *args: Any, **kwargs: Any) -> Any:
        if len(times) >= _BEFORE:
            told[name] += sum(t.numel() * t.element_size() for t in (first if isinstance(first, list) else [first]))
        return operation(first, *args, **kwargs)

    return counted


if __name__ == "__main__":
    main()
