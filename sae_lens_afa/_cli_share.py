"""The verbs of `sae-lens-afa` that share SAEs: push, pull, list, info, export, convert.

What a verb calls is imported where it runs, so that --help and the verbs that only read files start at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_lens_afa._cli_defaults import EXPORT_TOKENS, PROMPTS

share = typer.Typer()
_REPO = typer.Argument(help="Repository on the Hub: owner/name.")
_REVISION = typer.Option(help="Branch, tag or commit.")
_ACTIVATIONS = typer.Option(help=".safetensors file of raw activations [tokens, d_in] to calibrate on.")


@share.command()
def push(
    repo_id: Annotated[str, _REPO],
    sae: Annotated[list[str], typer.Option(help="Folder of a saved SAE, or ID=FOLDER; may be given several times.")],
    metrics: Annotated[list[Path] | None, typer.Option(help="Output folder of `sae-lens-afa eval`.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; created if missing.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag for the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    license_id: Annotated[str | None, typer.Option("--license", help="For the card: mit, apache-2.0, ...")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="For the card. Default: the SAEs'.")] = None,
    base_model: Annotated[list[str] | None, typer.Option(help="For the card. Default: the SAEs'.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    with_jumprelu: Annotated[
        bool, typer.Option("--with-jumprelu", help="Push what `export` makes of each too, as ID-jumprelu.")
    ] = False,
    activations: Annotated[Path | None, _ACTIVATIONS] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Calibrate on the bundled model and text.")] = False,
) -> None:
    """Put SAEs on the Hugging Face Hub, with a model card, in one commit.

    The token is that of `hf auth login` or HF_TOKEN.
    """
    from sae_lens_afa.hub.command import PushRequest, push_command

    url = push_command(
        PushRequest(
            repo_id=repo_id, sae=sae, metrics=metrics or (), private=private, revision=revision, tag=tag,
            create_pr=create_pr, license=license_id, dataset=dataset or (), base_model=base_model or (),
            message=message, with_jumprelu=with_jumprelu,
            calibration={"activations": activations, "demo": demo} if activations or demo else None,
        )
    )  # fmt: skip
    print(url)


@share.command()
def pull(
    repo_id: Annotated[str, _REPO],
    output: Annotated[Path, typer.Option(help="Folder that gets one folder for each SAE.")],
    sae_id: Annotated[list[str] | None, typer.Option(help="Default: all; may be given several times.")] = None,
    revision: Annotated[str | None, _REVISION] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing folders.")] = False,
) -> None:
    """Copy SAEs from the Hub into a folder, compared with the digests that the Hub states."""
    from sae_lens_afa.hub import pull as pull_saes

    for folder in pull_saes(repo_id, output, sae_id or (), revision, overwrite=overwrite):
        print(folder)


@share.command("list")
def list_(
    repo_or_path: Annotated[str, typer.Argument(help="Repository on the Hub, or a folder.")],
    revision: Annotated[str | None, _REVISION] = None,
) -> None:
    """List the ids of the SAEs in a repository or folder."""
    from sae_lens_afa.hub import list_saes

    for sae_id in list_saes(repo_or_path, revision):
        print(sae_id)


@share.command()
def info(
    repo_or_path: Annotated[str, typer.Argument(help="Repository on the Hub, or a folder.")],
    sae_id: Annotated[str | None, typer.Option(help="Default: all.")] = None,
    revision: Annotated[str | None, _REVISION] = None,
) -> None:
    """Say what is known of the SAEs in a repository or folder, without downloading weights."""
    from sae_lens_afa.hub import info as read_info

    print(read_info(repo_or_path, sae_id, revision))


@share.command()
def export(
    output: Annotated[Path, typer.Option(help="Folder for the jumprelu SAE.")],
    sae: Annotated[Path | None, typer.Option(help="Folder of a saved top_afa, afa_threshold or topk SAE.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Calibrate on the bundled model and text.")] = False,
    activations: Annotated[Path | None, _ACTIVATIONS] = None,
    model: Annotated[str | None, typer.Option(help="Model name or folder. Default: the SAE's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id, folder or file. Default: the SAE's.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook point. Default: the SAE's.")] = None,
    context_size: Annotated[int | None, typer.Option(help="Tokens of a prompt. Default: the SAE's.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens for thresholds and report.")] = EXPORT_TOKENS,
    batch_size_prompts: Annotated[int, typer.Option(help="Prompts per forward pass.")] = PROMPTS,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing SAE.")] = False,
) -> None:
    """Approximate an SAE by a jumprelu SAE that loads without this package, and say how good that is."""
    from sae_lens_afa.interop.command import ExportRequest, export_command

    print(
        export_command(
            ExportRequest(
                output=output, sae=sae, demo=demo, activations=activations, model=model, dataset=dataset, hook=hook,
                context_size=context_size, tokens=tokens, batch_size_prompts=batch_size_prompts, device=device,
                overwrite=overwrite,
            )
        )
    )  # fmt: skip


@share.command()
def convert(
    path: Annotated[Path, typer.Argument(help="Folder with sae.pt and config.json of the AFA authors' code.")],
    output: Annotated[Path, typer.Argument(help="Folder for the SAE.")],
    activations: Annotated[Path | None, _ACTIVATIONS] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing SAE.")] = False,
) -> None:
    """Turn a checkpoint of the AFA authors' code into a SAELens folder with the same outputs."""
    from sae_lens_afa.interop.command import convert_command

    print(convert_command(path, output, activations=activations, overwrite=overwrite))
