"""Options that several verbs share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_lens_afa.defaults import DEMO_EVAL_TOKENS, EVAL_TOKENS

Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in an existing output folder.")]
BatchSizePrompts = Annotated[int, typer.Option(help="Prompts per forward pass.")]

# What SAEs are judged and calibrated on.
Model = Annotated[str | None, typer.Option(help="Model name or folder. Default: the SAE's.")]
Dataset = Annotated[str | None, typer.Option(help="Hub id, folder or file. Default: the SAE's.")]
Hook = Annotated[str | None, typer.Option(help="Hook point. Default: the SAE's.")]
ExcludeSpecialTokens = Annotated[
    bool | None,
    typer.Option(
        "--exclude-special-tokens/--include-special-tokens", help="Leave them out or not. Default: as in training."
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        help=f"Tokens to read. Default: {EVAL_TOKENS:,}; with --demo {DEMO_EVAL_TOKENS:,}, its held-out text."
    ),
]
ContextSize = Annotated[int | None, typer.Option(help="Tokens of a prompt. Default: the SAE's.")]
Activations = Annotated[
    Path | None, typer.Option(help=".safetensors file of raw activations [tokens, d_in] to calibrate on.")
]
CalibrateOnDemo = Annotated[bool, typer.Option("--demo", help="Calibrate on the bundled model and held-out text.")]

# Where SAEs are.
Repository = Annotated[str, typer.Argument(help="Repository on the Hub: owner/name.")]
RepositoryOrFolder = Annotated[str, typer.Argument(help="Repository on the Hub, or a folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
