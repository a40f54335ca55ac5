"""Checkpoints of the AFA authors' training code as SAELens folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.util import dtype_to_str
from torch import Tensor

from sae_lens_afa.evals.sae_space import SAESpace
from sae_lens_afa.files import check_replaceable, write_folder
from sae_lens_afa.interop._comparison import compare
from sae_lens_afa.interop._reference_files import ReferenceCheckpoint, read_reference_checkpoint
from sae_lens_afa.interop._split import ActivationSplit
from sae_lens_afa.interop.agreement import METADATA_KEY, JumpReLUReport
from sae_lens_afa.loading.activations import read_activations
from sae_lens_afa.loading.inference import inference_view
from sae_lens_afa.saes import TopAFATrainingSAE, TopAFATrainingSAEConfig

_BATCH_TOKENS = 4096


@torch.no_grad()
def convert_reference_checkpoint(
    path: str | Path,
    output_path: str | Path,
    *,
    activations: Tensor | Iterable[Tensor] | str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a checkpoint of the reference implementation (SewoongLee/top-afa-sae) into a SAELens folder.

    "topafa" becomes a `top_afa` SAE and "topk" a `topk` SAE with the same outputs, `input_unit_norm` SAELens'
    layer_norm, which is the same. Two artefacts of the reference's top-AFA selection are not copied: it drops the
    smallest feature where all are positive, and its float32 sums drop features from long tails. "batchtopk" selects
    among the tokens of a batch, which inference must not; it becomes a `jumprelu` SAE with one
    threshold, the mean over batches of the cut between selected and other activations, and a report
    (`jumprelu_report`) of how well it agrees.

    Args:
        path: Folder with sae.pt (a state dict with W_enc, W_dec, b_dec and b_enc) and config.json.
        output_path: Folder for cfg.json and sae_weights.safetensors; written whole or not at all.
        activations: For "batchtopk": raw hook-point values [..., d_in] (hook_z: [..., heads, d_head]), or an iterable
            of such batches, or a .safetensors file as `interop.export_to_folder` takes it. They are cut into batches of
            the training's `batch_size`; see `export_jumprelu` for how many and which are held out for the report.
        overwrite: Replace an SAE that is there.

    Returns:
        `output_path`.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        FileExistsError: `output_path` exists, or is a folder of something else.
        ValueError: sae.pt holds anything but the tensors that config.json describes, a field is missing or wrong, or
            activations that are needed are not given, too few or do not fit. Nothing is written then.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> import torch
        >>> import sae_lens_afa as afa
        >>> config = {"sae_type": "topk", "act_size": 8, "dict_size": 16, "top_k": 4, "input_unit_norm": True}
        >>> _ = Path("config.json").write_text(json.dumps({**config, "hook_point": "hook", "model_name": "gpt2"}))
        >>> weights = {"W_enc": torch.randn(8, 16), "W_dec": torch.randn(16, 8)}
        >>> torch.save({**weights, "b_enc": torch.zeros(16), "b_dec": torch.zeros(8)}, "sae.pt")
        >>> afa.load(afa.convert_reference_checkpoint(".", "runs/converted")).cfg.k
        4
    """
    output = Path(output_path)
    check_replaceable(output, overwrite=overwrite)
    checkpoint = read_reference_checkpoint(Path(path))
    sae_type = checkpoint.config["sae_type"]
    if sae_type == "batchtopk" and activations is None:
        raise ValueError(
            "a batchtopk SAE selects among all tokens of a batch, which inference cannot: pass activations (raw values"
            f" at {checkpoint.config['hook_point']}, [tokens, {checkpoint.config['act_size']}], or a .safetensors"
            " file of them) to calibrate the threshold that replaces it."
        )
    if sae_type != "batchtopk" and activations is not None:
        raise ValueError(
            f"a {sae_type} SAE is converted as it is: leave out activations, there is nothing to calibrate."
        )
    if isinstance(activations, str | Path):
        activations = read_activations(activations)
    sae = _training_sae(checkpoint)
    if isinstance(sae, BatchTopKTrainingSAE) and activations is not None:
        sae.cfg.metadata[METADATA_KEY] = _calibrate(sae, activations, checkpoint.config["batch_size"]).to_dict()
    write_folder(output, sae.save_inference_model)
    return output


def _training_sae(checkpoint: ReferenceCheckpoint) -> TrainingSAE[Any]:
    """Return the checkpoint as SAELens would have trained it, for what its metadata will say."""
    config, weights = checkpoint.config, dict(checkpoint.weights)
    d_sae = config["dict_size"]
    fields: dict[str, Any] = {
        "d_in": config["act_size"],
        "d_sae": d_sae,
        "dtype": dtype_to_str(weights["W_enc"].dtype),
        "normalize_activations": "layer_norm" if config["input_unit_norm"] else "none",
        "reshape_activations": "hook_z" if config["hook_point"].endswith("hook_z") else "none",
        "decoder_init_norm": None,
        "metadata": _metadata(checkpoint),
    }
    if config["sae_type"] == "topafa":
        cfg = TopAFATrainingSAEConfig.paper(
            afa_coefficient=config["afa_coeff"], aux_loss_coefficient=config["aux_penalty"],
            k_aux=config["top_k_aux"], **fields,
        )  # fmt: skip
        sae: TrainingSAE[Any] = TopAFATrainingSAE(cfg)
    else:
        # The reference selects by activations that do not carry the decoder norms, and has no use for its b_enc.
        fields |= {"k": config["top_k"], "rescale_acts_by_decoder_norm": False}
        if "aux_penalty" in config:
            fields["aux_loss_coefficient"] = config["aux_penalty"]
        weights["b_enc"] = weights["b_dec"].new_zeros(d_sae)
        if config["sae_type"] == "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**fields))
        else:
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**fields))
            weights["topk_threshold"] = sae.topk_threshold
    sae.load_state_dict(weights)
    return sae


def _metadata(checkpoint: ReferenceCheckpoint) -> SAEMetadata:
    config = checkpoint.config
    known = {"context_size": config.get("seq_len"), "dataset_path": config.get("dataset_path")}
    return SAEMetadata(
        model_name=config["model_name"],
        hook_name=config["hook_point"],
        **{name: value for name, value in known.items() if value is not None},
        reference_config=checkpoint.told(),
    )


def _calibrate(sae: BatchTopKTrainingSAE, activations: Tensor | Iterable[Tensor], batch_size: int) -> JumpReLUReport:
    """Set the threshold that the SAE is saved with, and say how well it stands for the selection per batch."""
    split = ActivationSplit(SAESpace(sae), activations, _BATCH_TOKENS)
    total, n, fired = 0.0, 0, torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for rows in _regrouped(split.calibration(), batch_size):
        acts, pre = sae.encode_with_hidden_pre(rows)
        total += _cut(pre, acts > 0) * len(rows)
        n += len(rows)
        fired |= (acts > 0).any(0)
    sae.topk_threshold.fill_(total / n)
    measured: dict[str, Any] = compare(sae, inference_view(sae), _regrouped(split.judging(), batch_size))
    return JumpReLUReport(
        original_architecture="batchtopk",
        thresholds="global",
        n_calibration_tokens=split.n_calibration,
        held_out=split.held_out,
        n_never_selected=int((~fired).sum()),
        **measured,
    )


def _cut(pre: Tensor, selected: Tensor) -> float:
    """Return the middle between a batch's smallest selected activation and its largest other one; 0 without one."""
    if not selected.any():
        return float(pre.amax().clamp(min=0))
    on = torch.where(selected, pre, torch.inf).amin()
    off = torch.where(selected, 0, pre).amax().clamp(min=0)
    middle = off + (on - off) / 2
    return 0.0 if off == 0 else float(middle if middle < on else off)


def _regrouped(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Return the rows in batches of `size`, the last one shorter."""
    waiting: list[Tensor] = []
    for rows in batches:
        waiting.append(rows)
        if sum(map(len, waiting)) >= size:
            *full, rest = torch.cat(waiting).split(size)
            if len(rest) == size:
                full, rest = [*full, rest], rest[:0]
            yield from full
            waiting = [rest]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)
