"""Activations of a language model as files for `sae-lens-afa sweep activations`, to be changed to your own model.

    python examples/activations_of_a_model.py                       # the bundled model and text: a minute, no network
    python examples/activations_of_a_model.py --model gpt2 --dataset articles.txt --hook blocks.8.hook_resid_pre

writes train.safetensors and test.safetensors, and prints the command that compares architectures on them. `--model` is
a folder or any name that TransformerLens knows, `--dataset` a file, a folder or a name on the Hub.

Activations are centred on the mean of the training tokens and multiplied by one number that makes their mean norm
sqrt(d_in), so the sweep takes them with `--raw`. The residual stream of many models has a few tokens of ten times the
usual norm: `--outlier-norm-multiple 3` leaves out those above three medians. `--whiten` brings the covariance of the
training tokens to 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import sae_lens_afa as afa
from sae_lens_afa.loading.models import check_hook_name, load_language_model
from sae_lens_afa.loading.text import load_text_dataset


def texts_of(dataset: str | None) -> Iterator[str]:
    """Yield the documents of a data set; the bundled chapters if none is named."""
    if dataset is None:
        yield from afa.demo.load_text().train
        return
    data = load_text_dataset(dataset)
    if isinstance(data, str):
        data = load_dataset(data, split="train", streaming=True)
    yield from (row["text"] for row in data)


def contexts_of(model: Any, texts: Iterator[str], n: int, context: int) -> Tensor:
    """Return `n` contexts of the text, [n, context], each with a BOS token at its start."""
    found: list[Tensor] = []
    count = 0
    for text in texts:
        found.append(model.to_tokens(text, prepend_bos=False, truncate=False)[0].cpu())
        count += len(found[-1])
        if count >= n * (context - 1):
            break
    else:
        raise ValueError(f"the text has {count:,} tokens, {n * (context - 1):,} are wanted: take fewer")
    tokens = torch.cat(found)[: n * (context - 1)].view(n, context - 1)
    return torch.cat([torch.full((n, 1), model.tokenizer.bos_token_id), tokens], 1)


@torch.no_grad()
def activations_of(model: Any, contexts: Tensor, hook: str, batch: int) -> Tensor:
    """Return the activations of all tokens but BOS, whose norm is unlike that of others, [tokens, d_in]."""
    kept: list[Tensor] = []
    for rows in tqdm(contexts.split(batch), unit="batch"):
        _, cache = model.run_with_cache(rows, names_filter=hook, return_type=None)
        kept.append(cache[hook][:, 1:].flatten(2).flatten(0, 1).float().cpu())
    return torch.cat(kept)


def whitening(train: Tensor) -> Tensor:
    """Return the symmetric matrix that brings the covariance of centred tokens to 1."""
    values, vectors = torch.linalg.eigh(train.double().T @ train.double() / len(train))
    return ((vectors / values.clamp(min=1e-6 * float(values.max())).sqrt()) @ vectors.T).float()


def main() -> None:
    """Run the model, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--dataset", help="default: the bundled text")
    parser.add_argument("--hook", default="blocks.2.hook_resid_pre")
    parser.add_argument("--output", type=Path, default=Path("runs/files"))
    parser.add_argument("--tokens", type=int, default=60_000, help="to train on")
    parser.add_argument("--test-tokens", type=int, default=15_000, help="to judge on: those that follow in the text")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="contexts in one forward pass")
    parser.add_argument("--outlier-norm-multiple", type=float, help="leave out tokens above so many median norms")
    parser.add_argument("--whiten", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    model = load_language_model(args.model, args.device) if args.model else afa.demo.load_model(args.device)
    check_hook_name(model, args.hook)
    n_train, n_test = (-(-tokens // (args.context - 1)) for tokens in (args.tokens, args.test_tokens))
    contexts = contexts_of(model, texts_of(args.dataset), n_train + n_test, args.context)
    found = activations_of(model, contexts, args.hook, args.batch)
    train, test = found.split([n_train * (args.context - 1), n_test * (args.context - 1)])
    if args.outlier_norm_multiple is not None:
        limit = args.outlier_norm_multiple * torch.linalg.vector_norm(train, dim=-1).median()
        train, test = (part[torch.linalg.vector_norm(part, dim=-1) <= limit] for part in (train, test))
        print(f"{len(found) - len(train) - len(test)} of {len(found)} tokens left out")
    mean = train.mean(0)
    train, test = train - mean, test - mean
    if args.whiten:
        matrix = whitening(train)
        train, test = train @ matrix, test @ matrix
    scale = train.shape[1] ** 0.5 / torch.linalg.vector_norm(train, dim=-1).mean()
    args.output.mkdir(parents=True, exist_ok=True)
    files = [args.output / f"{name}.safetensors" for name in ("train", "test")]
    for file, part in zip(files, (train, test), strict=True):
        save_file({"activations": (part * scale).contiguous()}, file)
    print(f"{len(train):,} tokens to train on, {len(test):,} to judge on, {train.shape[1]} wide. Compare:")
    print(f"  sae-lens-afa sweep activations --activations {files[0]} --test {files[1]} --raw --preset quick")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
