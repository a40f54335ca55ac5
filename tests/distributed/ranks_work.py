"""Work of the processes that the tests start: `python ranks_work.py FOLDER JOB`, by torchrun or alone."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from evaluations_work import evaluations
from runs import OURS, SAELENS, runner_config, sae_config
from sae_lens.saes.sae import TrainingSAE, TrainStepInput

from sae_lens_afa import over_ranks, torchrun
from sae_lens_afa.demo import load_model, load_text
from sae_lens_afa.distributed import DistributedSAETrainingRunner, reduced_step
from sae_lens_afa.runner import InterruptibleTrainingRunner, config_from_checkpoint

STEPS = 12


def dataset() -> Dataset:
    return Dataset.from_dict({"text": load_text().train[:20]})


def config(folder: Path, architecture: str, **overrides: Any):
    """A short run in double precision, in which other sums of the same numbers choose no other features."""
    sae = sae_config(architecture, dtype="float64")
    fields = {"steps": STEPS, "lr": 1e-3, "dtype": "float64", "dead_feature_window": 1, "store_batch_size_prompts": 5}
    return runner_config(folder, sae=sae, **{**fields, **overrides})


class Recording:
    """Keeps the losses of every step."""

    losses: list[dict[str, float]]

    def prepare(self, trainer: Any) -> None:
        super().prepare(trainer)  # pyright: ignore[reportAttributeAccessIssue]
        self.losses, step = [], trainer.step
        self.trainer = trainer

        def recorded(batch):
            output = step(batch)
            self.losses.append({name: float(value) for name, value in output.losses.items()})
            return output

        trainer.step = recorded


class OnOne(Recording, InterruptibleTrainingRunner):
    pass


class OnRanks(Recording, DistributedSAETrainingRunner):
    pass


def outcome(runner: Any) -> dict[str, Any]:
    trainer = runner.trainer
    return {
        "losses": runner.losses,
        "fired": trainer.act_freq_scores.tolist(),
        "since": trainer.n_forward_passes_since_fired.tolist(),
        "samples": [trainer.n_training_samples, trainer.n_frac_active_samples],
        "weights": {name: float(p.double().abs().sum()) for name, p in runner.sae.named_parameters()},
        "buffers": {name: float(b.double().nan_to_num().sum()) for name, b in runner.sae.named_buffers()},
    }


def train(folder: Path, runner_class: Any, architecture: str, model: Any, **overrides: Any) -> dict[str, Any]:
    runner = runner_class(config(folder, architecture, **overrides), override_model=model, override_dataset=dataset())
    runner.run()
    return outcome(runner)


def equal_runs(folder: Path) -> dict[str, Any]:
    return {
        **all_architectures(folder), "sources": sources(folder), "afterwards": afterwards(folder),
        "bad share": bad_share(),
    }  # fmt: skip


def bad_share() -> dict[str, dict[str, list[float]]]:
    """Return what SAEs keep of a first batch whose first half, the first rank's share, is not finite."""
    batch = torch.randn(64, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch[:32] = torch.nan
    share = batch
    if torchrun.started_this():
        share = batch.chunk(2)[torchrun.rank()]
    kept: dict[str, dict[str, list[float]]] = {}
    for name in OURS:
        torch.manual_seed(1)
        sae = TrainingSAE.from_dict(sae_config(name, dtype="float64").to_dict()).train()
        dead = torch.zeros(256, dtype=torch.bool)
        step = 5 if name == "feature_choice" else 0  # where its second phase begins
        with over_ranks.shared_batch(dist.group.WORLD if torchrun.started_this() else None):
            sae.training_forward_pass(
                TrainStepInput(
                    share,
                    dict.fromkeys(sae.get_coefficients(), 1.0),
                    dead,
                    n_training_steps=step,
                    is_logging_step=False,
                )
            )
        kept[name] = {key: value.double().flatten().tolist() for key, value in sae.named_buffers()}
        kept[name]["W_dec"] = sae.W_dec.sum(1).tolist()
    return kept


def afterwards(folder: Path) -> dict[str, Any]:
    """Say of an SAE that was trained whether it is one that trains alone, and of ranks that part what is said."""
    model = load_model()
    runner = OnRanks(config(folder / "x", "batchtopk"), override_model=model, override_dataset=dataset())
    sae = runner.run()
    attributes = sorted(vars(copy.deepcopy(sae)))
    found: dict[str, Any] = {"activation": type(sae.activation_fn).__name__, "attributes": attributes}
    if runner.ranks.is_first:  # which would wait for the others
        sae(torch.randn(5, 192, dtype=torch.float64)).sum().backward()
    runner = OnRanks(config(folder / "y", "topk"), override_model=model, override_dataset=dataset())
    reduced_step._EVERY, prepare = 1, runner.prepare

    def parting(trainer: Any) -> None:
        prepare(trainer)
        if not runner.ranks.is_first:
            trainer.sae.b_dec.data += 1e-3

    runner.prepare = parting
    try:
        runner.run()
    except RuntimeError as error:
        found["parted"] = str(error)
    return found


def all_architectures(folder: Path, runner_class: Any = OnRanks) -> dict[str, Any]:
    """Train every architecture for a few steps."""
    model = load_model()
    return {name: train(folder / name, runner_class, name, model) for name in (*OURS, *SAELENS)}


def from_checkpoint(folder: Path) -> dict[str, Any]:
    """Go on from the middle of a run of one process."""
    model = load_model()
    (checkpoint,) = folder.glob("checkpoints/*/[0-9]*")
    cfg = config_from_checkpoint(checkpoint)
    cfg.output_path = cfg.checkpoint_path = None
    runner = OnRanks(cfg, override_model=model, override_dataset=dataset())
    runner.run()
    return outcome(runner)


def sources(folder: Path) -> dict[str, Any]:
    """Read batches from a model and from a disk, with an evaluation in between; and train from the disk."""
    model = load_model()
    settings = {"store_batch_size_prompts": 4, **cached(folder)}
    found: dict[str, Any] = {"trained": train(folder / "disk", OnRanks, "afa_pursuit", model, **settings)}
    for name, settings in (("live", {}), ("cached", cached(folder))):
        cfg = config(folder / name, "topk", store_batch_size_prompts=4, n_batches_in_buffer=16, **settings)
        runner = OnRanks(cfg, override_model=model, override_dataset=dataset())
        store = runner.activations_store
        torch.manual_seed(0)
        taken = [next(store) for _ in range(10)]
        if name == "live" and runner.ranks.is_first:
            store.get_batch_tokens(3)
        taken += [next(store) for _ in range(10)]
        found[name] = [batch.double().sum(-1)[:5].tolist() for batch in taken]
    return found


def cached(folder: Path) -> dict[str, Any]:
    return {"use_cached_activations": True, "cached_activations_path": str(folder / "cache")}


JOBS = {job.__name__: job for job in (equal_runs, from_checkpoint, evaluations)}


def main() -> None:
    folder, job = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    result = JOBS[job](folder)
    (folder / f"{job}-{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
