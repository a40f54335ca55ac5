"""Dead features of TopK, BatchTopK, Mutual Choice and Feature Choice at equal k, on data with Zipfian features.

    python benchmarks/dead_features.py [--seeds 3] [--steps 2000] [--output docs/results]

Writes dead_features.json and dead_features.md. The data are SAELens' synthetic model: more features than dimensions,
firing probabilities by a Zipf law. For each seed all SAEs learn from the same batches; what is judged is the model
saved for inference, on new tokens. About 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig, LoggingConfig, TopKTrainingSAEConfig, TrainingSAE
from sae_lens import __version__ as sae_lens_version
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig, ZipfianFiringProbabilityConfig
from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_lens_afa import FeatureChoiceTrainingSAEConfig, MutualChoiceTrainingSAEConfig
from sae_lens_afa.files import write_whole

FIGURES = ("dead_latents", "explained_variance", "sae_l0", "training_l0", "mcc", "f1")
HEADINGS = ("dead latents", "explained variance", "L0", "L0 in training", "MCC", "F1")


def configs(args: argparse.Namespace) -> dict[str, TrainingSAEConfig]:
    """The SAEs that are compared."""
    size: dict[str, Any] = {"d_in": args.d_in, "d_sae": args.d_sae}
    return {
        "topk": TopKTrainingSAEConfig(**size, k=args.k),
        "batchtopk": BatchTopKTrainingSAEConfig(**size, k=args.k),
        "mutual_choice": MutualChoiceTrainingSAEConfig(**size, k=args.k),
        "feature_choice, uniform": FeatureChoiceTrainingSAEConfig(**size, k=args.k),
        "feature_choice, zipf": FeatureChoiceTrainingSAEConfig(
            **size, k=args.k, prior="zipf", feature_choice_start_step=args.steps // 3
        ),
    }


def synthetic_model(args: argparse.Namespace, seed: int) -> SyntheticModel:
    """Features in random directions, made as orthogonal as they can be, firing independently by a Zipf law."""
    law = ZipfianFiringProbabilityConfig(exponent=1.0, max_prob=args.max_prob, min_prob=args.min_prob)
    return SyntheticModel(
        SyntheticModelConfig(
            num_features=args.features,
            hidden_dim=args.d_in,
            firing_probability=law,
            std_firing_magnitudes=0.3,
            bias=False,
            seed=seed,
        )
    )


def batches(model: SyntheticModel, batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """One stream for all SAEs."""
    while True:
        yield {"data": model.feature_dict(model.activation_generator.sample(batch)).detach()}


def run(args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Train all SAEs of one seed and judge what they are saved as."""
    torch.manual_seed(seed)
    model = synthetic_model(args, seed)
    saes: dict[str, TrainingSAE[Any]] = {}
    for name, cfg in configs(args).items():
        torch.manual_seed(seed)
        saes[name] = TrainingSAE.from_dict(cfg.to_dict())
    trainer = MultiSAETrainer(
        SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, device="cpu", autocast=False,
            total_training_samples=args.steps * args.batch, train_batch_size_samples=args.batch,
            lr=args.lr, lr_end=args.lr / 10, lr_scheduler_name="constant", lr_warm_up_steps=0,
            lr_decay_steps=args.steps // 5, n_restart_cycles=1, adam_beta1=0.9, adam_beta2=0.999,
            dead_feature_window=args.dead_feature_window, feature_sampling_window=args.steps // 10,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        saes,
        dict.fromkeys(saes, "data"),
        batches(model, args.batch),
    )  # fmt: skip
    trainer.fit()
    results = {}
    for name, sae in saes.items():
        with TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            saved = SAE.load_from_disk(folder)
        torch.manual_seed(10_000 + seed)
        found = eval_sae_on_synthetic_data(
            saved, model.feature_dict, model.activation_generator, num_samples=args.eval_tokens, batch_size=args.batch
        )
        results[name] = {
            "dead_latents": float(found.dead_latents),
            "explained_variance": found.explained_variance,
            "sae_l0": found.sae_l0,
            # Of the last sparsity window, a tenth of the run.
            "training_l0": float(sae.cfg.metadata.l0),
            "mcc": found.mcc,
            "f1": found.classification.f1_score,
            "true_l0": found.true_l0,
        }
    return results


def table(runs: list[dict[str, dict[str, float]]]) -> str:
    """Mean and range over seeds, as Markdown."""
    lines = ["| | " + " | ".join(HEADINGS) + " |", "|---" * (len(HEADINGS) + 1) + "|"]
    for name in runs[0]:
        cells = []
        for figure in FIGURES:
            values = [run[name][figure] for run in runs]
            digits = 0 if figure == "dead_latents" else 2 if figure.endswith("l0") else 3
            mean, low, high = (f"{v:.{digits}f}" for v in (statistics.mean(values), min(values), max(values)))
            cells.append(f"{mean} ({low}-{high})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(args: argparse.Namespace, runs: list[dict[str, dict[str, float]]]) -> str:
    """The table with what is needed to read it."""
    true_l0 = statistics.mean(run["topk"]["true_l0"] for run in runs)
    return f"""# Dead features at equal k

`python benchmarks/dead_features.py`: {args.features} features with Zipfian frequencies
({args.max_prob} to {args.min_prob}) in {args.d_in} dimensions, true L0 {true_l0:.2f}; d_sae {args.d_sae}, k = {args.k},
{args.steps} steps of {args.batch} tokens, {len(runs)} seeds. The trainer counts a feature as dead after
{args.dead_feature_window} steps without firing; a run is {args.steps / args.dead_feature_window:.0f} times as long.
In the table a latent is dead if it never fires on {args.eval_tokens} new tokens. Judged is the saved
inference model. Mean and range over seeds.

{table(runs)}
"""


def parse() -> argparse.Namespace:
    """The command's options; the defaults are those of docs/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("seeds", 3), ("steps", 2000), ("batch", 1024), ("d-in", 64), ("features", 512), ("d-sae", 512),
        ("dead-feature-window", 100), ("eval-tokens", 100_000), ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("k", 3), ("lr", 1e-3), ("max-prob", 0.4), ("min-prob", 1e-3)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on."""
    return {key: value for key, value in vars(args).items() if key != "output"}


def main() -> None:
    """Run all seeds, write both files, print the table."""
    args = parse()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    runs = [run(args, seed) for seed in range(args.seeds)]
    versions = {"torch": torch.__version__, "sae_lens": sae_lens_version}
    text = json.dumps({"settings": settings(args), "versions": versions, "runs": runs}, indent=2) + "\n"
    args.output.mkdir(parents=True, exist_ok=True)
    write_whole(args.output / "dead_features.json", lambda path: path.write_text(text))
    write_whole(args.output / "dead_features.md", lambda path: path.write_text(report(args, runs)))
    print(report(args, runs), f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
