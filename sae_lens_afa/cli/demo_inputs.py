"""Inputs that `--demo` stands for: the SAEs of the demo, their model, and the text that neither has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens_afa.defaults import DEMO_EVAL_TOKENS, EVAL_TOKENS
from sae_lens_afa.files import SAE_CFG_FILENAME

_OUTPUT = Path("runs/demo")


def demo_saes() -> list[Path]:
    """Return the folders that `sae-lens-afa demo` wrote.

    Raises:
        FileNotFoundError: there is none.
    """
    from sae_lens_afa.demo import demo_folders

    found = [folder for folder in demo_folders(_OUTPUT) if (folder / SAE_CFG_FILENAME).is_file()]
    if not found:
        raise FileNotFoundError(
            f"there is no demo SAE in {_OUTPUT}: run `sae-lens-afa demo` first, or give --sae PATH."
        )
    return found


def check_demo(*, model: str | None = None, dataset: str | None = None, activations: Path | None = None) -> None:
    """Refuse, beside `--demo`, what it stands for.

    Raises:
        ValueError: naming the options.
    """
    if activations is not None:
        raise ValueError("--activations are read as they are: leave out --demo.")
    if model is not None or dataset is not None:
        raise ValueError("--demo has its own model and text: leave out --model and --dataset.")


def tokens_to_read(tokens: int | None, *, demo: bool) -> int:
    """Return how many tokens are judged: those asked for, or the default, of which --demo has a smaller one."""
    if tokens is not None:
        return tokens
    return DEMO_EVAL_TOKENS if demo else EVAL_TOKENS


def demo_model_and_text(device: str) -> dict[str, Any]:
    """Load the bundled model and its held-out text, as the arguments `model` and `dataset`."""
    from sae_lens_afa.demo import load_model
    from sae_lens_afa.demo.chapters import held_out_dataset

    return {"model": load_model(device), "dataset": held_out_dataset()}
