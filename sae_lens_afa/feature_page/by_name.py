"""The page of an SAE whose model and text are given by name, or named by its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from sae_lens.saes.sae import SAE

from sae_lens_afa.defaults import EVAL_TOKENS, PROMPTS
from sae_lens_afa.evals.inputs import check_sizes, inputs_for
from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.feature_page.by_store import features
from sae_lens_afa.feature_page.features_report import FeaturesReport
from sae_lens_afa.files import check_output_folder
from sae_lens_afa.loading.models import check_device

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def features_by_name(
    sae: SAE[Any],
    output: str | Path,
    *,
    name: str | None = None,
    model: str | HookedRootModule | None = None,
    dataset: str | Dataset | None = None,
    hook: str | None = None,
    context_size: int | None = None,
    tokens: int = EVAL_TOKENS,
    batch_size_prompts: int = PROMPTS,
    exclude_special_tokens: bool | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> FeaturesReport:
    """Write the page of an SAE as `features` does, with the model and the text loaded by their names.

    What can be known to be wrong is said before anything is downloaded or computed.

    Args:
        sae: The SAE; not changed.
        output: Folder to write.
        name: Name of the SAE on the page. None: its architecture.
        model: Name, folder or model. None takes the name in the SAE's metadata; so with the next three.
        dataset: Name, file, folder, or text as `loading.text.text_dataset` makes it.
        hook: Hook point.
        context_size: Tokens of a prompt.
        tokens: Tokens to read.
        batch_size_prompts: Prompts per forward pass.
        exclude_special_tokens: Leave out special tokens, or code them. None: as the SAE was trained.
        device: cpu, cuda, ... of a model that is given by name.
        overwrite: Replace the files in an existing `output`.
        progress: Show a progress bar.

    Raises:
        ValueError, TypeError, OSError: one line that names the parameter and says what to do.

    Example:
        >>> import sae_lens_afa as afa
        >>> from sae_lens_afa.feature_page import features_by_name
        >>> sae = afa.load("runs/demo-afa_pursuit")  # doctest: +SKIP
        >>> features_by_name(sae, "runs/features", model="gpt2", dataset="Skylion007/openwebtext")  # doctest: +SKIP
    """
    check_sizes(tokens=tokens, batch_size_prompts=batch_size_prompts, context_size=context_size)
    check_device(device)
    check_output_folder(Path(output), overwrite=overwrite)
    SAESpace(sae)  # for what it refuses: an architecture, a scaling that is not known
    with inputs_for(
        {name or "the SAE": sae}, model=model, dataset=dataset, hook=hook, context_size=context_size, tokens=tokens,
        batch_size_prompts=batch_size_prompts, device=device,
    ) as inputs:  # fmt: skip
        return features(
            sae, inputs.store, inputs.model, output, tokens=tokens, batch_size_prompts=batch_size_prompts,
            exclude_special_tokens=exclude_special_tokens, name=name, model_name=inputs.model_name,
            dataset_name=inputs.dataset_name, overwrite=overwrite, progress=progress,
        )  # fmt: skip
