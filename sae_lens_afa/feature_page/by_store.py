"""The features of an SAE on a text: collected, and written as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_afa import over_ranks
from sae_lens_afa.defaults import EVAL_TOKENS
from sae_lens_afa.evals.hook_reader import HookReader
from sae_lens_afa.evals.inputs import check_sizes
from sae_lens_afa.evals.sae_space import SAESpace, architecture_of
from sae_lens_afa.feature_page.collected import collect
from sae_lens_afa.feature_page.content import page_content
from sae_lens_afa.feature_page.features_report import TABLE, FeaturesReport
from sae_lens_afa.feature_page.page import write_page
from sae_lens_afa.files import FEATURES_FILENAME, check_output_folder, write_into

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def features(
    sae: SAE[Any],
    activation_store: ActivationsStore,
    model: HookedRootModule,
    output: str | Path,
    *,
    tokens: int = EVAL_TOKENS,
    batch_size_prompts: int | None = None,
    exclude_special_tokens: bool | Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    activation_scaler: ActivationScaler | None = None,
    name: str | None = None,
    model_name: str | None = None,
    dataset_name: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> FeaturesReport:
    """Write a page on which the features of an SAE can be looked at: OUTPUT/features.html.

    The page is one file that needs no network. It has a table of all latents to search and sort; for each latent the
    contexts in which it is strongest, a fair sample of the others, the distribution of its activations, the tokens that
    its decoder row promotes and suppresses, its neighbours, and the latents that come with it; and for some tokens the
    features that they are made of, with the stages of a pursuit.

    The text is read once, in the order of the store; memory does not grow with it beyond its token ids. Within
    `distributed.shared_evaluation` the prompts are shared out among the ranks, and the first of them writes.

    Args:
        sae: Any SAELens SAE with a linear decoder, for inference or training; not changed.
        activation_store: Where token ids come from; also its `model_kwargs` and `autocast_lm`.
        model: The model whose activations the SAE codes.
        output: Folder to write, with features.html and latents.csv.
        tokens: Tokens to read, before special ones are left out.
        batch_size_prompts: Prompts per forward pass; the store's if None.
        exclude_special_tokens: As for `run_afa_evals`.
        positions: As for `run_afa_evals`.
        activation_scaler: As for `evaluate_activations`.
        name: Name of the SAE on the page. None: its architecture.
        model_name: Name of the model on the page. None: as the model's config has it.
        dataset_name: Name of the text on the page. None: as the SAE's metadata has it.
        seed: Seed of the samples.
        overwrite: Replace the files in an existing `output`.
        progress: Show a progress bar.

    Returns:
        The files, and the table of all latents.

    Raises:
        TypeError: a transcoder or a temporal SAE.
        ValueError: a hook that the model does not have or that is not d_in wide, no tokens to read.
        OSError: `output` exists or cannot be written.

    Example:
        >>> import sae_lens_afa as afa
        >>> from datasets import Dataset
        >>> from sae_lens import ActivationsStore
        >>> from sae_lens.saes.sae import SAEMetadata
        >>> model, text = afa.demo.load_model(), Dataset.from_dict({"text": afa.demo.load_text().held_out[:2]})
        >>> about = SAEMetadata(hook_name="blocks.2.hook_resid_pre", context_size=32, prepend_bos=True)
        >>> sae = afa.AFAPursuitSAE(afa.AFAPursuitSAEConfig(d_in=192, d_sae=256, metadata=about))
        >>> store = ActivationsStore.from_sae(model, sae, text, streaming=False, store_batch_size_prompts=4)
        >>> report = afa.features(sae, store, model, "looked-at", tokens=256, progress=False)
        >>> report.page.name, len(report.table)
        ('features.html', 256)
    """
    output = Path(output)
    check_sizes(tokens=tokens, batch_size_prompts=batch_size_prompts)
    check_output_folder(output, overwrite=overwrite)
    space, hook = SAESpace(sae, activation_scaler), HookReader(sae, activation_store, model)
    collected = collect(
        space, activation_store, model, tokens=tokens, batch_size_prompts=batch_size_prompts, positions=positions,
        exclude_special_tokens=exclude_special_tokens, seed=seed, progress=progress,
    )  # fmt: skip
    content = page_content(space, hook, model, collected)
    title = f"{name or architecture_of(sae)} at {hook.name}"
    about = {
        "title": title, "architecture": architecture_of(sae), "d_in": space.d_in, "d_sae": space.d_sae,
        "hook": hook.name, "model": model_name or _name_of(model),
        "dataset": dataset_name or sae.cfg.metadata.dataset_path, "n_tokens": collected.n_tokens,
        "context": int(collected.prompts.shape[1]),
    }  # fmt: skip

    def write(folder: Path) -> None:
        write_page(folder / FEATURES_FILENAME, about, content)
        content.table.to_csv(folder / TABLE, index=False)

    if over_ranks.rank() == 0:
        write_into(output, write)
    return FeaturesReport(output, title, content.table, collected.n_tokens)


def _name_of(model: Any) -> str:
    return str(getattr(getattr(model, "cfg", None), "model_name", None) or type(model).__name__)
