"""`sae-lens-afa convert`: checkpoints of the AFA authors' code as SAELens folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_lens_afa.cli.options import Activations, Overwrite


def convert(
    path: Annotated[Path, typer.Argument(help="Folder with sae.pt and config.json of the AFA authors' code.")],
    output_path: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the SAE.")],
    activations: Activations = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a checkpoint of the AFA authors' code into a SAELens folder with the same outputs."""
    from sae_lens import SAE

    from sae_lens_afa.interop import convert_reference_checkpoint, jumprelu_report
    from sae_lens_afa.interop.agreement import METADATA_KEY

    folder = convert_reference_checkpoint(path, output_path, activations=activations, overwrite=overwrite)
    sae = SAE.load_from_disk(folder)
    if METADATA_KEY in sae.cfg.metadata:  # an approximation, which says how good it is
        print(f"{jumprelu_report(sae)}\n")
    print(f'saved in {folder}; SAE.load_from_disk("{folder}") loads it')
