"""SAEBench's sparse probing on labelled texts that are here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.saes.sae import SAE
from torch import Tensor

from sae_lens_afa.evals.inputs import check_sizes, metadata_set
from sae_lens_afa.interop._bench import prepared, result_file, sae_bench, shapes_unchecked, versions
from sae_lens_afa.loading.models import check_context, check_device, load_language_model

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_TEST_EVERY = 5  # SAEBench trains its probes on 4,000 texts and tests them on 1,000
_DATASET = "local_texts"
_PROBE_ON_ALL = {"select_top_k": None, "use_sklearn": False, "batch_size": 250, "epochs": 100, "lr": 1e-2}


def saebench_sparse_probing(
    sae: str | Path | SAE[Any],
    texts: Mapping[str, Sequence[str]],
    output: str | Path,
    *,
    name: str | None = None,
    model: str | HookedRootModule | None = None,
    context_size: int = 128,
    k_values: Sequence[int] = (1, 2, 5),
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Run SAEBench's sparse probing on your own classes of texts, and write its result file.

    SAEBench itself knows eight data sets of the Hub by name. Here it finds the activations of `texts` where it keeps
    those of a data set that it has read before; probes, their training and their scores are its own. Needs
    `pip install sae-bench`.

    Args:
        sae: An SAE of any architecture of SAELens, or its folder; its metadata names the hook.
        texts: Texts by class: two classes or more, of which as many texts count as the smallest has. Every fifth
            text of a class tests the probes.
        output: Folder for the result file.
        name: SAE's name in the result. None takes the folder's name, or the architecture.
        model: Name, folder or model. None takes the name in the SAE's metadata.
        context_size: Tokens that are read of a text.
        k_values: Numbers of features that a probe may use: of 1, 2, 5, 10, 20, 50, 100.
        device: cpu, cuda, ...
        overwrite: Replace a result file of the same name.

    Returns:
        The result file, in SAEBench's format: `{name}_custom_sae_eval_results.json`.

    Raises:
        ImportError: SAEBench is not installed.
        ValueError, TypeError, OSError: one line that names the parameter and says what to do.

    Example:
        >>> import sae_lens_afa as afa
        >>> texts = {"prose": ["It was dark."] * 10, "verse": ["Dark was the night"] * 10}
        >>> afa.interop.saebench_sparse_probing("runs/gpt2-layer6", texts, "eval_results")  # doctest: +SKIP
        PosixPath('eval_results/gpt2-layer6_custom_sae_eval_results.json')
    """
    check_device(device)
    check_sizes(context_size=context_size)
    size = min((len(each) for each in texts.values()), default=0)
    if len(texts) < 2 or size < 2 * _TEST_EVERY:
        raise ValueError(f"texts must have two classes or more, each of {2 * _TEST_EVERY} texts or more.")
    probing = sae_bench("evals.sparse_probing.main")
    name, sae = prepared(sae, name, device)
    path = result_file(output, name, overwrite=overwrite)
    language_model, model_name = _model(sae, model, device, name)
    check_context(language_model, context_size, what="context_size")
    cfg = probing.SparseProbingEvalConfig(
        model_name=model_name,
        dataset_names=[_DATASET],
        probe_train_set_size=len(texts) * (size - size // _TEST_EVERY),
        probe_test_set_size=len(texts) * (size // _TEST_EVERY),
        context_length=context_size,
        llm_batch_size=32,
        llm_dtype="float32",
        k_values=list(k_values),
    )
    with metadata_set([sae], model_name=model_name), shapes_unchecked(), tempfile.TemporaryDirectory() as kept:
        general = sae_bench("sae_bench_utils.general_utils")
        sae_id, sae, _ = general.load_and_format_sae(name, sae, device)
        torch.manual_seed(cfg.random_seed)
        known = _activations(probing, cfg, {key: each[:size] for key, each in texts.items()}, language_model, sae)
        torch.save(known, Path(kept) / f"{_DATASET}_activations.pt")
        scores, by_class = probing.run_eval_single_sae(cfg, sae, language_model, device, kept)
        _write(probing, path, cfg, scores, by_class, (name, sae_id, sae))
    return path


def _model(sae: SAE[Any], model: Any, device: str, name: str) -> tuple[Any, str]:
    about = sae.cfg.metadata
    if about.hook_name is None:
        raise ValueError(f"{name} does not say which hook it codes: set sae.cfg.metadata.hook_name.")
    if model is not None and not isinstance(model, str):
        return model, str(model.cfg.model_name)
    if (model := model or about.model_name) is None:
        raise ValueError(f"{name} does not say its model_name: give model.")
    loaded = load_language_model(model, device, about.model_class_name, about.model_from_pretrained_kwargs)
    return loaded, Path(model).name if Path(model).is_dir() else model


def _activations(probing: Any, cfg: Any, texts: Mapping[str, Sequence[str]], model: Any, sae: Any) -> dict[str, Any]:
    """Return what SAEBench keeps of a data set: activations by class, and how well probes on the model itself do."""
    collect, data = probing.activation_collection, probing.dataset_utils
    train = {key: [text for i, text in enumerate(each, 1) if i % _TEST_EVERY] for key, each in texts.items()}
    test = {key: list(each[_TEST_EVERY - 1 :: _TEST_EVERY]) for key, each in texts.items()}
    acts: list[dict[str, Tensor]] = []
    for part in (train, test):
        tokens = data.tokenize_data_dictionary(part, model.tokenizer, cfg.context_length, str(sae.device))
        acts.append(
            collect.get_all_llm_activations(
                tokens, model, cfg.llm_batch_size, sae.cfg.hook_layer, sae.cfg.hook_name, mask_bos_pad_eos_tokens=True
            )
        )
    means = [collect.create_meaned_model_activations(each) for each in acts]
    train_probe = probing.probe_training.train_probe_on_activations
    scores = {"llm_test_accuracy": train_probe(*means, **_PROBE_ON_ALL)[1]}
    for k in cfg.k_values:
        scores[f"llm_top_{k}_test_accuracy"] = train_probe(*means, select_top_k=k)[1]
    return {"train": acts[0], "test": acts[1], "llm_results": scores}


def _write(probing: Any, path: Path, cfg: Any, scores: Any, by_class: Any, sae: tuple[str, str, Any]) -> None:
    """Write the scores as SAEBench's own loop over SAEs does."""
    name, sae_id, found = sae
    of = {who: {key: value for key, value in scores.items() if key.startswith(f"{who}_")} for who in ("llm", "sae")}
    probing.SparseProbingEvalOutput(
        eval_config=cfg,
        datetime_epoch_millis=int(datetime.now().timestamp() * 1000),
        eval_result_metrics=probing.SparseProbingMetricCategories(
            llm=probing.SparseProbingLlmMetrics(**of["llm"]), sae=probing.SparseProbingSaeMetrics(**of["sae"])
        ),
        eval_result_details=[
            probing.SparseProbingResultDetail(dataset_name=key, **value)
            for key, value in scores.items()
            if isinstance(value, dict)
        ],
        eval_result_unstructured=by_class,
        sae_lens_id=sae_id,
        sae_lens_release_id=name,
        sae_cfg_dict=found.cfg.to_dict(),
        **versions(),
    ).to_json_file(str(path), indent=2)
