"""Train the tiny GPT-2-architecture language model that `sae-lens-afa demo` ships with.

    python examples/train_demo_lm.py --output demo_lm

writes a Hugging Face model folder (config, bf16 weights, tokenizer) and `training.json` with the held-out
cross-entropy beside the unigram entropy. About half an hour on two CPU cores; `--device cuda` takes less.
The seed fixes initialisation, batches and dropout; another machine or thread count rounds differently,
so a re-run gives a model of the same quality, not the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from sae_lens_afa.demo.chapters import load_text

BOS = "<|endoftext|>"


def train_tokenizer(chapters: list[str], vocab_size: int, folder: Path) -> GPT2TokenizerFast:
    """Train a byte-level BPE (GPT-2's kind) on `chapters` and save it to `folder`."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(chapters, vocab_size=vocab_size, special_tokens=[BOS], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = GPT2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=BOS, eos_token=BOS, unk_token=BOS, pad_token=BOS
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def to_stream(tokenizer: GPT2TokenizerFast, chapters: list[str]) -> torch.Tensor:
    """Tokenise chapters into one stream, BOS before each: what SAELens' activation store feeds a model."""
    bos = tokenizer.bos_token_id
    return torch.tensor([t for ids in tokenizer(chapters)["input_ids"] for t in (bos, *ids)])


def batches(stream: torch.Tensor, context: int, batch: int, generator: torch.Generator):
    """Yield one epoch of [batch, context] windows at a random phase, each beginning with BOS."""
    body = context - 1
    phase = int(torch.randint(body, (1,), generator=generator))
    windows = stream[phase : phase + (len(stream) - phase) // body * body].view(-1, body)
    order = torch.randperm(len(windows), generator=generator)
    for rows in order.split(batch):
        if len(rows) == batch:
            yield torch.cat([stream.new_full((batch, 1), int(stream[0])), windows[rows]], dim=1)


@torch.no_grad()
def held_out_cross_entropy(model: GPT2LMHeadModel, stream: torch.Tensor, context: int) -> float:
    """Mean next-token cross-entropy in nats over non-overlapping windows that begin with BOS."""
    model.eval()
    body = context - 1
    windows = stream[: len(stream) // body * body].view(-1, body)
    tokens = torch.cat([windows.new_full((len(windows), 1), int(stream[0])), windows], dim=1).to(model.device)
    losses = [model(rows, labels=rows).loss.float() * len(rows) for rows in tokens.split(32)]
    return float(sum(losses) / len(windows))


def unigram_entropy(train: torch.Tensor, held_out: torch.Tensor, vocab_size: int) -> float:
    """Held-out cross-entropy in nats of the add-one unigram model fitted on the training stream."""
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())


def parse_args() -> argparse.Namespace:
    """Flags; the defaults made the bundled model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=16, help="windows of --context tokens per step")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def new_model(args: argparse.Namespace, tokenizer: GPT2TokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 of the size asked for, with heads of 32 dimensions."""
    config = GPT2Config(
        vocab_size=args.vocab_size, n_positions=args.context, n_embd=args.d_model, n_layer=args.layers,
        n_head=args.d_model // 32, resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=args.dropout,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(args.device)


def train_model(args: argparse.Namespace, model: GPT2LMHeadModel, train: torch.Tensor, held_out: torch.Tensor) -> None:
    """AdamW with warm-up and cosine decay; prints the held-out cross-entropy after each epoch."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    total = args.epochs * (len(train) // (args.context - 1) // args.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 200, 0.02 + 0.49 * (1 + math.cos(math.pi * min(s / total, 1.0))))
    )
    generator = torch.Generator().manual_seed(args.seed)
    with tqdm(total=total, mininterval=10) as bar:
        for epoch in range(args.epochs):
            model.train()
            for tokens in batches(train, args.context, args.batch, generator):
                tokens = tokens.to(args.device)
                with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16):
                    loss = model(tokens, labels=tokens).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                bar.update()
            cross_entropy = held_out_cross_entropy(model, held_out, args.context)
            bar.write(f"epoch {epoch + 1}: train {loss.item():.3f}, held out {cross_entropy:.3f} nats/token")


def main() -> None:
    """Train tokenizer and model, print progress, write the folder."""
    args = parse_args()
    args.output.mkdir(parents=True)
    torch.manual_seed(args.seed)
    text = load_text()
    tokenizer = train_tokenizer(text.train, args.vocab_size, args.output)
    train, held_out = to_stream(tokenizer, text.train), to_stream(tokenizer, text.held_out)
    model = new_model(args, tokenizer)
    print(f"{len(train):,} training tokens, {len(held_out):,} held out, {model.num_parameters():,} parameters")
    started = time.monotonic()
    train_model(args, model, train, held_out)
    model = model.to(torch.bfloat16)
    model.save_pretrained(args.output)
    report = {
        "settings": {k: v for k, v in vars(args).items() if k != "output"},
        "train_tokens": len(train),
        "held_out_tokens": len(held_out),
        "parameters": model.num_parameters(),
        "held_out_cross_entropy": held_out_cross_entropy(model.float(), held_out, args.context),
        "held_out_unigram_cross_entropy": unigram_entropy(train, held_out, args.vocab_size),
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
    }
    (args.output / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
