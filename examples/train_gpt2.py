"""Train a top-AFA SAE on GPT-2 small with the paper's settings (arXiv 2503.24277, section 6).

    python examples/train_gpt2.py --layer 6

takes GPT-2 small and OpenWebText from the Hugging Face Hub and trains on a GPU: residual stream before the layer,
12,288 features, 20,001 steps of 4,096 tokens, Adam with learning rate 3e-4. Without a network:

    python examples/train_gpt2.py --model-path gpt2_folder --dataset-path text_folder --device cpu

`--model-path` is a Hugging Face folder of any model of GPT-2's architecture; `--dataset-path` what
`datasets.load_dataset` reads (a folder of .jsonl, .parquet or .txt files with a column "text").

Two things differ from the reference's training: SAELens' trainer clips gradients at norm 1, and it calls a latent dead
after `--dead-feature-window` steps (set to the reference's 5 here).
"""

from __future__ import annotations

import argparse

import torch
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_afa import TopAFATrainingSAEConfig
from sae_lens_afa.loading.gpt2_folder import load_gpt2_folder
from sae_lens_afa.runner import InterruptibleTrainingRunner


def parse_args() -> argparse.Namespace:
    """Flags; the defaults are the paper's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=6, help="hook: blocks.LAYER.hook_resid_pre")
    parser.add_argument("--afa-coefficient", type=float, default=1 / 32, help="the paper: 1/128 to 1/16")
    parser.add_argument("--expansion", type=int, default=16, help="d_sae = EXPANSION * d_in")
    parser.add_argument("--tokens", type=int, default=20_001 * 4096)
    parser.add_argument("--batch", type=int, default=4096, help="tokens per training step")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--dead-feature-window", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 matmuls in the SAE")
    parser.add_argument("--model-path", help="folder with a GPT-2 model; default: gpt2 from the Hub")
    parser.add_argument("--dataset-path", default="Skylion007/openwebtext", help="Hub id or folder")
    parser.add_argument("--tokenized", action="store_true", help="the dataset holds token ids, not text")
    parser.add_argument("--output", default="runs/gpt2-small-top-afa")
    parser.add_argument("--resume-from-checkpoint")
    parser.add_argument("--wandb-project", help="log to this project; default: no logging")
    return parser.parse_args()


def main() -> None:
    """Train, save, and load what was saved."""
    args = parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no cuda device here: pass --device cpu (and fewer --tokens)")
    model = load_gpt2_folder(args.model_path, args.device) if args.model_path else None
    d_in = model.cfg.d_model if model is not None else 768
    context = min(128, model.cfg.n_ctx) if model is not None else 128
    cfg = LanguageModelSAERunnerConfig(
        sae=TopAFATrainingSAEConfig.paper(d_in=d_in, d_sae=args.expansion * d_in, afa_coefficient=args.afa_coefficient),
        model_name=model.cfg.model_name if model is not None else "gpt2",
        hook_name=f"blocks.{args.layer}.hook_resid_pre",
        dataset_path=args.dataset_path,
        model_from_pretrained_kwargs={},
        is_dataset_tokenized=args.tokenized,
        streaming=args.model_path is None,
        context_size=context,
        training_tokens=args.tokens,
        train_batch_size_tokens=args.batch,
        n_batches_in_buffer=max(10, 2 * args.batch // (32 * context)),
        lr=args.lr,
        adam_beta1=0.9,
        adam_beta2=0.99,
        dead_feature_window=args.dead_feature_window,
        device=args.device,
        autocast=args.autocast,
        n_checkpoints=4,
        checkpoint_path=f"{args.output}-checkpoints",
        output_path=args.output,
        resume_from_checkpoint=args.resume_from_checkpoint,
        logger=LoggingConfig(log_to_wandb=args.wandb_project is not None, wandb_project=args.wandb_project or "unused"),
    )
    InterruptibleTrainingRunner(cfg, override_model=model).run()
    sae = SAE.load_from_disk(args.output, device=args.device)
    print(f"saved in {args.output}: {sae.cfg.architecture()}, d_in {sae.cfg.d_in}, d_sae {sae.cfg.d_sae}")


if __name__ == "__main__":
    main()
