"""`sae-lens-afa push`: SAEs from folders to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lens_afa.cli.demo_inputs import check_demo, demo_model_and_text
from sae_lens_afa.cli.options import Activations, CalibrateOnDemo, Repository


def push(
    repo_id: Repository,
    sae: Annotated[list[str], typer.Option(help="Folder of a saved SAE, or ID=FOLDER; may be given several times.")],
    metrics: Annotated[list[Path] | None, typer.Option(help="Output folder of `sae-lens-afa eval`.")] = None,
    features: Annotated[
        list[str] | None, typer.Option(help="Output folder of `sae-lens-afa features`; of several SAEs ID=FOLDER.")
    ] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; created if missing.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag for the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    license: Annotated[str | None, typer.Option(help="For the card: mit, apache-2.0, ...")] = None,
    datasets: Annotated[list[str] | None, typer.Option("--dataset", help="For the card. Default: the SAEs'.")] = None,
    base_model: Annotated[list[str] | None, typer.Option(help="For the card. Default: the SAEs'.")] = None,
    commit_message: Annotated[str | None, typer.Option("--message", help="Commit message.")] = None,
    with_jumprelu: Annotated[
        bool, typer.Option("--with-jumprelu", help="Push what `export` makes of each too, as ID-jumprelu.")
    ] = False,
    activations: Activations = None,
    demo: CalibrateOnDemo = False,
) -> None:
    """Put SAEs on the Hugging Face Hub, with a model card, in one commit.

    The token is that of `hf auth login` or HF_TOKEN.
    """
    from sae_lens_afa.hub.push_folders import push_folders

    calibration: dict[str, Any] = {"activations": activations}
    if demo:
        check_demo(activations=activations)
        calibration = demo_model_and_text("cpu")
    url = push_folders(
        repo_id, sae, metrics=metrics or (), features=features or (), private=private, revision=revision,
        tag=tag, create_pr=create_pr, license=license, datasets=datasets or (), base_model=base_model or (),
        commit_message=commit_message, with_jumprelu=with_jumprelu, **calibration,
    )  # fmt: skip
    print(url)
