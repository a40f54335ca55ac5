"""`sae-lens-afa export` and `convert` as functions: which SAE, which activations, and what is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.evals.command import (
    DEFAULT_PROMPTS,
    EvalRequest,
    check_request,
    load_requested_saes,
    model_and_text,
    with_demo,
)
from sae_lens_afa.evals.prompts import next_prompts
from sae_lens_afa.files import check_replaceable, write_folder
from sae_lens_afa.interop.jumprelu import DEFAULT_CE_TOKENS, check_exportable, export_jumprelu
from sae_lens_afa.interop.reference_checkpoint import convert_reference_checkpoint
from sae_lens_afa.interop.report import METADATA_KEY, JumpReLUReport, jumprelu_report
from sae_lens_afa.loading.models import check_device
from sae_lens_afa.loading.saes import load_saes

DEFAULT_TOKENS = 32_768
_TENSOR = "activations"
_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `sae-lens-afa export` is asked; an option that is None comes from the SAE's metadata.

    Attributes:
        output: Folder to write.
        sae: Folder of a saved `top_afa`, `afa_threshold` or `topk` SAE.
        demo: Calibrate on the bundled model and the text it never saw; without `sae`, the top_afa SAE in runs/demo.
        activations: A .safetensors file of raw hook-point values, one tensor or one of the name "activations".
            Without it they come from the model and text, with which the cross-entropy is measured too.
        model, dataset, hook, context_size, batch_size_prompts: As for `EvalRequest`.
        tokens: Tokens of the text to read for thresholds and report; the cross-entropy takes up to 8,192 before them.
        device: cpu, cuda, ...
        overwrite: Replace the SAE in an existing `output`.
    """

    output: Path
    sae: Path | None = None
    demo: bool = False
    activations: Path | None = None
    model: str | None = None
    dataset: str | None = None
    hook: str | None = None
    context_size: int | None = None
    tokens: int = DEFAULT_TOKENS
    batch_size_prompts: int = DEFAULT_PROMPTS
    device: str = "cpu"
    overwrite: bool = False


@dataclass(frozen=True)
class BridgeResult:
    """A folder that was written; `str()` is the text for the terminal.

    Attributes:
        folder: The SAE.
        report: How good the approximation is; None for an SAE with the same outputs.
    """

    folder: Path
    report: JumpReLUReport | None

    def __str__(self) -> str:
        saved = f'saved in {self.folder}; SAE.load_from_disk("{self.folder}") loads it'
        return saved if self.report is None else f"{self.report}\n\n{saved}"


def export_command(request: ExportRequest, *, progress: bool = True) -> BridgeResult:
    """Write a `jumprelu` SAE that approximates another.

    What can be known to be wrong is said before anything is downloaded or computed.

    Args:
        request: What to export, what to calibrate on, and where to write.
        progress: Show a progress bar.

    Raises:
        ValueError, TypeError, OSError: one line that names the option and says what to do.
    """
    check_replaceable(request.output, overwrite=request.overwrite)
    if request.activations is not None:
        export = _export_from_file(request, request.activations, progress=progress)
    else:
        export = _export_from_text(request, progress=progress)
    write_folder(request.output, export.save_model)
    return BridgeResult(request.output, jumprelu_report(export))


def convert_command(
    path: Path, output: Path, *, activations: Path | None = None, overwrite: bool = False
) -> BridgeResult:
    """Write the checkpoint of the reference implementation in `path` as a SAELens folder.

    Args:
        path: Folder with sae.pt and config.json.
        output: Folder to write.
        activations: For a batchtopk checkpoint, as for `ExportRequest`.
        overwrite: Replace the SAE in an existing `output`.

    Raises:
        ValueError, TypeError, OSError: one line that says what to do.
    """
    batches = None if activations is None else read_activations(activations)
    folder = convert_reference_checkpoint(path, output, activations=batches, overwrite=overwrite)
    sae = SAE.load_from_disk(folder)
    return BridgeResult(folder, jumprelu_report(sae) if METADATA_KEY in sae.cfg.metadata else None)


def read_activations(path: Path) -> Iterator[Tensor]:
    """The activations in a .safetensors file, some rows at a time.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, or it does not say which tensor is meant.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--activations {path} is not a file; give a .safetensors file.")
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
    except SafetensorError as error:
        raise ValueError(f"--activations {path} is not a whole .safetensors file ({error}).") from error
    if len(names) != 1 and _TENSOR not in names:
        raise ValueError(
            f"--activations {path} must hold one tensor, or one of the name {_TENSOR!r}; it holds"
            f" {', '.join(names) or 'none'}."
        )
    return _rows(path, names[0] if len(names) == 1 else _TENSOR)


def _rows(path: Path, name: str) -> Iterator[Tensor]:
    with safe_open(path, "pt") as file:
        tensor: Any = file.get_slice(name)
        shape: list[int] = tensor.get_shape()
        rows = max(1, _ROWS // (shape[1] if len(shape) > 2 else 1))
        for start in range(0, shape[0] if shape else 0, rows):
            yield tensor[start : start + rows]


def _export_from_file(request: ExportRequest, path: Path, *, progress: bool) -> SAE[Any]:
    options = {"--demo": request.demo, "--model": request.model, "--dataset": request.dataset}
    options |= {"--hook": request.hook, "--context-size": request.context_size}
    if given := [option for option, value in options.items() if value]:
        raise ValueError(f"--activations are read as they are: leave out {', '.join(given)}.")
    if request.sae is None:
        raise ValueError("nothing to export: give --sae PATH.")
    check_device(request.device)
    batches = read_activations(path)
    (sae,) = load_saes([request.sae], None, (), request.device).values()
    return export_jumprelu(sae, batches, progress=progress)


def _export_from_text(request: ExportRequest, *, progress: bool) -> SAE[Any]:
    if request.sae is None and not request.demo:
        raise ValueError("nothing to export: give --sae PATH, or --demo for the SAE in runs/demo.")
    wanted = EvalRequest(
        output=request.output, sae=() if request.sae is None else (request.sae,), demo=request.demo,
        model=request.model, dataset=request.dataset, hook=request.hook, context_size=request.context_size,
        tokens=request.tokens, batch_size_prompts=request.batch_size_prompts, device=request.device,
    )  # fmt: skip
    wanted = with_demo(wanted)
    wanted = replace(wanted, sae=wanted.sae[:1])  # of the demo's SAEs the first
    check_request(wanted)
    saes = load_requested_saes(wanted)
    (sae,) = saes.values()
    check_exportable(sae)
    model, store = model_and_text(wanted, saes)
    with expected_messages_off():
        batches = _activations(store, request.tokens, request.batch_size_prompts)
        return export_jumprelu(
            sae, batches, model=model, activation_store=store, progress=progress,
            cross_entropy_tokens=min(DEFAULT_CE_TOKENS, -(-request.tokens // 4)),
        )  # fmt: skip


def _activations(store: ActivationsStore, tokens: int, prompts: int) -> Iterator[Tensor]:
    """The store's next activations, up to so many tokens or the end of the text."""
    left = -(-tokens // store.context_size)
    while left > 0:
        wanted = min(prompts, left)
        batch = next_prompts(store, wanted)
        if batch is None:
            return
        yield store.get_activations(batch).flatten(0, 1)
        left = left - wanted if len(batch) == wanted else 0
