"""Activations of a language model as files for `sae-lens-afa sweep activations --raw`.

    python benchmarks/language_model_activations.py --weights FOLDER --text articles.xml.bz2 --output FOLDER

`--weights` is a folder that transformers' `save_pretrained` wrote, model and tokenizer; `--model` the name by which
TransformerLens knows its architecture. Text is plain (.txt) or a Wikipedia dump (.xml.bz2), cut into contexts, of which
the last part is for judging. The residual stream of such a model has a few tokens of ten times the usual norm, and one
mean that is most of the norm of all. So three folders are written, each with train.safetensors and test.safetensors:

    centred            minus the mean of the training tokens, times one number that makes the mean norm sqrt(d_in)
    without-outliers   the same of tokens whose norm is at most 3 times the median
    whitened           of these, with the covariance of the training tokens brought to 1
"""

from __future__ import annotations

import argparse
import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

OUTLIER = 3.0  # in median norms
MARKUP = (  # of Wikipedia, from the innermost: comments, references, tables, templates, links, the rest
    (re.compile(r"<!--.*?-->|<(ref|math|gallery)[^>/]*>.*?</\1>|<[^>]*>", re.DOTALL), ""),
    (re.compile(r"\{\|.*?\|\}", re.DOTALL), ""),
    *([(re.compile(r"\{\{[^{}]*\}\}"), "")] * 3),
    (re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]"), ""),
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]"), r"\1"),
    (re.compile(r"\[https?:\S+ ?([^\]]*)\]"), r"\1"),
    (re.compile(r"'{2,}|={2,}|^[*#:;|!].*$", re.MULTILINE), ""),
    (re.compile(r"\n\s*\n+"), "\n\n"),
)  # fmt: skip


def text_of(path: Path) -> str:
    """The words of a plain file, or of the articles of a dump."""
    if path.suffix != ".bz2":
        return path.read_text(encoding="utf-8")
    articles = re.findall(r"<text[^>]*>(.*?)</text>", bz2.decompress(path.read_bytes()).decode("utf-8"), re.DOTALL)
    return "\n\n".join(_plain(html.unescape(article)) for article in articles if not article.startswith("#REDIRECT"))


def _plain(article: str) -> str:
    for pattern, replacement in MARKUP:
        article = pattern.sub(replacement, article)
    return article.strip()


def activations(model: Any, tokens: Tensor, hook: str, batch: int) -> Iterator[Tensor]:
    """Of contexts [n, context] that start with a token that is left out, which has a norm of its own."""
    stop = extract_stop_at_layer_from_tlens_hook_name(hook)
    for rows in tqdm(tokens.split(batch), unit="batch"):
        _, cache = model.run_with_cache(rows, names_filter=hook, stop_at_layer=stop)
        yield cache[hook][:, 1:].flatten(0, 1).float()


def write(folder: Path, train: Tensor, test: Tensor) -> None:
    """Both files of a variant, brought to a mean norm of sqrt(d_in) by one number."""
    scale = train.shape[1] ** 0.5 / torch.linalg.vector_norm(train, dim=-1).mean()
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        save_file({"activations": (rows * scale).contiguous()}, folder / f"{name}.safetensors")
    print(f"{folder}: {len(train):,} and {len(test):,} tokens, {train.shape[1]} wide")


def whitening(train: Tensor) -> Tensor:
    """Symmetric, from the covariance of centred tokens."""
    values, vectors = torch.linalg.eigh(train.double().T @ train.double() / len(train))
    return ((vectors / values.clamp(min=1e-6 * float(values.max())).sqrt()) @ vectors.T).float()


def load(name: str, weights: Path) -> Any:
    """A HookedTransformer with the weights of a folder."""
    from transformer_lens import HookedTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(weights), AutoTokenizer.from_pretrained(weights)
    return HookedTransformer.from_pretrained_no_processing(
        name, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )


@torch.no_grad()
def main() -> None:
    """Read the options, run the model, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google/gemma-3-270m")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hook", default="blocks.9.hook_resid_post")
    parser.add_argument("--tokens", type=int, default=60_000, help="to train on")
    parser.add_argument("--test-tokens", type=int, default=15_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4, help="contexts in one forward pass")
    given = parser.parse_args()

    model = load(given.model, given.weights)
    words = model.to_tokens(text_of(given.text), prepend_bos=False, truncate=False)[0]
    length = given.context - 1
    n_train, n_test = -(-given.tokens // length), -(-given.test_tokens // length)
    if len(words) < (n_train + n_test) * length:
        parser.error(f"{given.text} has {len(words):,} tokens, {(n_train + n_test) * length:,} are wanted")
    contexts = words[: len(words) // length * length].view(-1, length)
    # Contexts from all of the text, and not only from its first articles; the last ones are for judging.
    contexts = contexts[torch.linspace(0, len(contexts) - 1, n_train + n_test).long()]
    contexts = torch.cat([torch.full((len(contexts), 1), model.tokenizer.bos_token_id), contexts], 1)
    found = torch.cat(list(activations(model, contexts, given.hook, given.batch)))
    train, test = found[: n_train * length], found[n_train * length :]

    limit = OUTLIER * torch.linalg.vector_norm(train, dim=-1).median()
    usual = [part[torch.linalg.vector_norm(part, dim=-1) <= limit] for part in (train, test)]
    print(f"{len(train) - len(usual[0])} and {len(test) - len(usual[1])} tokens over {OUTLIER:g} median norms")
    write(given.output / "centred", train - train.mean(0), test - train.mean(0))
    mean = usual[0].mean(0)
    centred = [part - mean for part in usual]
    write(given.output / "without-outliers", *centred)
    matrix = whitening(centred[0])
    write(given.output / "whitened", *(part @ matrix for part in centred))


if __name__ == "__main__":
    main()
