"""SAEs judged on a language model's activations, with the result as a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from sae_lens.saes.sae import SAE

from sae_lens_afa import over_ranks
from sae_lens_afa.defaults import EVAL_TOKENS, PROMPTS
from sae_lens_afa.evals.inputs import check_sizes, inputs_for
from sae_lens_afa.evals.judge import SAEJudge
from sae_lens_afa.evals.language_model import run_afa_evals
from sae_lens_afa.evals.sae_space import architecture_of
from sae_lens_afa.files import check_output_folder
from sae_lens_afa.loading.models import check_device
from sae_lens_afa.reports.folder import EvalReport, write_report

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def evaluate_saes(
    saes: Mapping[str, SAE[Any]],
    output: str | Path,
    *,
    model: str | HookedRootModule | None = None,
    dataset: str | Dataset | None = None,
    hook: str | None = None,
    context_size: int | None = None,
    tokens: int = EVAL_TOKENS,
    batch_size_prompts: int = PROMPTS,
    cross_entropy_tokens: int = 0,
    positions: Sequence[int] = (),
    exclude_special_tokens: bool | None = None,
    outlier_norm_multiple: float | None = None,
    rescale_by_token_std: bool = False,
    device: str = "cpu",
    per_token: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> EvalReport:
    """Judge SAEs and write metrics.json, plot_data.parquet, plots and, on request, tokens.parquet.

    What can be known to be wrong is said before anything is downloaded or computed. The folder is written when
    all is done, each file whole; within `distributed.shared_evaluation` by the first rank; the reports of
    the others name no files.

    Args:
        saes: By name; not changed.
        output: Folder to write.
        model: Name, folder or model. None takes the name that the SAEs' metadata agree on; so with the next three.
        dataset: Name, file, folder, or text as `loading.text.text_dataset` makes it.
        hook: Hook point of all SAEs.
        context_size: Tokens of a prompt.
        tokens: Tokens to read.
        batch_size_prompts: Prompts per forward pass.
        cross_entropy_tokens: Of `tokens`, on how many to measure the model's cross-entropy too.
        positions: Positions of a prompt that are judged; all if empty.
        exclude_special_tokens: Leave out special tokens, or judge them. None: as each SAE was trained.
        outlier_norm_multiple: Report also without tokens of more than so many median norms.
        rescale_by_token_std: Norms in raw units for SAEs with layer_norm.
        device: cpu, cuda, ... of a model that is given by name.
        per_token: Write tokens.parquet with every token that is kept.
        overwrite: Replace the files in an existing `output`.
        progress: Show a progress bar.

    Returns:
        The results by SAE and the files; `str()` is the table for the terminal.

    Raises:
        ValueError, TypeError, OSError: one line that names the parameter and says what to do.

    Example:
        >>> import sae_lens_afa as afa
        >>> from sae_lens_afa.loading.text import text_dataset
        >>> from sae_lens_afa.reports import evaluate_saes
        >>> sae = afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=192, d_sae=64))
        >>> text = text_dataset(afa.demo.load_text().held_out)
        >>> report = evaluate_saes(  # doctest: +SKIP
        ...     {"mine": sae}, "runs/eval", model=afa.demo.load_model(), dataset=text, hook="blocks.2.hook_resid_pre",
        ...     context_size=128, tokens=16_384,
        ... )
        >>> report.results["mine"].n_tokens  # doctest: +SKIP
        16384
    """
    output = Path(output)
    check_evaluation(
        output, tokens=tokens, batch_size_prompts=batch_size_prompts, context_size=context_size,
        cross_entropy_tokens=cross_entropy_tokens, outlier_norm_multiple=outlier_norm_multiple, device=device,
        overwrite=overwrite,
    )  # fmt: skip
    if not saes:
        raise ValueError("saes is empty: give at least one SAE.")
    for sae in saes.values():  # for what it refuses: an architecture, an option, a scaling that is not known
        SAEJudge(sae, outlier_norm_multiple=outlier_norm_multiple, rescale_by_token_std=rescale_by_token_std)
    with inputs_for(
        saes, model=model, dataset=dataset, hook=hook, context_size=context_size, tokens=tokens,
        batch_size_prompts=batch_size_prompts, device=device,
    ) as inputs:  # fmt: skip
        results = run_afa_evals(
            saes,
            inputs.store,
            inputs.model,
            tokens=tokens,
            batch_size_prompts=batch_size_prompts,
            cross_entropy_tokens=cross_entropy_tokens,
            exclude_special_tokens=exclude_special_tokens,
            positions=list(positions) or None,
            outlier_norm_multiple=outlier_norm_multiple,
            rescale_by_token_std=rescale_by_token_std,
            progress=progress,
        )
        described = {name: _description(sae) for name, sae in saes.items()}
    settings = {
        "model": inputs.model_name,
        "dataset": inputs.dataset_name,
        "tokens": tokens,
        "context_size": inputs.store.context_size,
        "positions": list(positions),
        "exclude_special_tokens": exclude_special_tokens,
        "outlier_norm_multiple": outlier_norm_multiple,
        "rescale_by_token_std": rescale_by_token_std,
    }
    if over_ranks.rank() != 0:
        return EvalReport(output, results, described, settings)
    return write_report(output, results, described, settings, per_token=per_token)


def check_evaluation(
    output: str | Path,
    *,
    tokens: int = EVAL_TOKENS,
    batch_size_prompts: int = PROMPTS,
    context_size: int | None = None,
    cross_entropy_tokens: int = 0,
    outlier_norm_multiple: float | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Refuse what `evaluate_saes` would refuse before it looks at an SAE.

    Raises:
        ValueError: naming the parameter.
        OSError: `output` exists or cannot be written.

    Example:
        >>> from sae_lens_afa.reports import check_evaluation
        >>> check_evaluation("runs/eval", tokens=0)
        Traceback (most recent call last):
        ...
        ValueError: tokens must be at least 1, got 0.
    """
    check_sizes(tokens=tokens, batch_size_prompts=batch_size_prompts, context_size=context_size)
    if cross_entropy_tokens < 0:
        raise ValueError(f"cross_entropy_tokens must not be negative, got {cross_entropy_tokens}.")
    if outlier_norm_multiple is not None and not outlier_norm_multiple > 0:
        raise ValueError(f"outlier_norm_multiple must be > 0, got {outlier_norm_multiple}.")
    check_device(device)
    check_output_folder(Path(output), overwrite=overwrite)


def _description(sae: SAE[Any]) -> dict[str, Any]:
    cfg = sae.cfg
    return {
        "architecture": architecture_of(sae),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "hook_name": cfg.metadata.hook_name,
        "normalize_activations": cfg.normalize_activations,
    }
