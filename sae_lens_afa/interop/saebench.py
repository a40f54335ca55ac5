"""SAEBench's core evaluation on a model and text that are here: folders, files or objects, without the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from sae_lens.saes.sae import SAE

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.defaults import EVAL_TOKENS, PROMPTS
from sae_lens_afa.evals.inputs import Inputs, check_sizes, inputs_for, metadata_set
from sae_lens_afa.interop._bench import prepared, result_file, sae_bench, versions
from sae_lens_afa.loading.models import check_device

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

# SAEBench's published runs take ten times as many tokens for sparsity and variance as for cross-entropy.
_PER_RECONSTRUCTION = 10
_ALL = (
    "compute_kl", "compute_ce_loss", "compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics",
    "compute_featurewise_density_statistics", "compute_featurewise_weight_based_metrics",
    "exclude_special_tokens_from_reconstruction",
)  # fmt: skip


def saebench_core(
    sae: str | Path | SAE[Any],
    output: str | Path,
    *,
    name: str | None = None,
    model: str | HookedRootModule | None = None,
    dataset: str | Dataset | None = None,
    hook: str | None = None,
    context_size: int | None = None,
    tokens: int = EVAL_TOKENS,
    batch_size_prompts: int = PROMPTS,
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Run SAEBench's core evaluation, all of its metrics, and write its result file.

    SAEBench itself loads models by TransformerLens' names and text from the Hub; its measuring function takes both
    as objects, which is what is called here. Needs `pip install sae-bench`.

    Args:
        sae: An SAE of any architecture of SAELens, or its folder.
        output: Folder for the result file.
        name: SAE's name in the result. None takes the folder's name, or the architecture.
        model: Name, folder or model. None takes the name in the SAE's metadata; so with the next three.
        dataset: Name, file, folder, or text as `loading.text.text_dataset` makes it.
        hook: Hook point that the SAE codes.
        context_size: Tokens of a prompt.
        tokens: Tokens for sparsity and variance, rounded up to whole batches; a tenth for the cross-entropy.
        batch_size_prompts: Prompts per forward pass.
        device: cpu, cuda, ...
        overwrite: Replace a result file of the same name.

    Returns:
        The result file, in SAEBench's format: `{name}_custom_sae_eval_results.json`.

    Raises:
        ImportError: SAEBench is not installed.
        ValueError, TypeError, OSError: one line that names the parameter and says what to do.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.interop.saebench_core("runs/gpt2-layer6", "eval_results")  # doctest: +SKIP
        PosixPath('eval_results/gpt2-layer6_custom_sae_eval_results.json')
    """
    check_device(device)
    check_sizes(tokens=tokens, batch_size_prompts=batch_size_prompts, context_size=context_size)
    core = sae_bench("evals.core.main")
    name, sae = prepared(sae, name, device)
    path = result_file(output, name, overwrite=overwrite)
    with (
        inputs_for(
            {name: sae}, model=model, dataset=dataset, hook=hook, context_size=context_size, tokens=tokens,
            batch_size_prompts=batch_size_prompts, device=device,
        ) as inputs,
        metadata_set([sae], model_name=inputs.model_name),
    ):  # fmt: skip
        result = _measured(core, name, sae, inputs, tokens)
        about = versions()
        core.save_single_eval_result(
            core.replace_nans_with_negative_one(result), about["eval_id"], about["sae_lens_version"],
            about["sae_bench_commit_hash"], str(path), sae,
        )  # fmt: skip
    return path


def _measured(core: Any, name: str, sae: SAE[Any], inputs: Inputs, tokens: int) -> dict[str, Any]:
    """Return what SAEBench's own loop over SAEs collects for one of them."""
    general = sae_bench("sae_bench_utils.general_utils")
    sae_id, sae, _ = general.load_and_format_sae(name, sae, str(sae.device))
    store = inputs.store
    batches = -(-tokens // (store.context_size * store.store_batch_size_prompts))
    cfg = core.CoreEvalConfig(
        model_name=inputs.model_name,
        llm_dtype="float32",
        dataset=inputs.dataset_name,
        context_size=store.context_size,
        batch_size_prompts=store.store_batch_size_prompts,
        n_eval_sparsity_variance_batches=batches,
        n_eval_reconstruction_batches=-(-batches // _PER_RECONSTRUCTION),
        **dict.fromkeys(_ALL, True),
    )
    tokenizer: Any = inputs.model.tokenizer
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    with expected_messages_off():
        metrics, features = core.run_evals(
            sae=sae, activation_store=store, model=inputs.model, eval_config=cfg, ignore_tokens=special
        )
    metrics["misc_metrics"] = core.calculate_misc_metrics(features)
    return {
        "unique_id": f"{name}_{sae_id}", "sae_set": name, "sae_id": sae_id, "eval_cfg": cfg, "metrics": metrics,
        "feature_metrics": features,
    }  # fmt: skip
