"""`sae-lens-afa eval` and `plot` as functions: which SAEs, which model and text, and what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.defaults import EVAL_TOKENS as DEFAULT_TOKENS
from sae_lens_afa.evals.judge import SAEJudge
from sae_lens_afa.evals.language_model import run_afa_evals
from sae_lens_afa.evals.report import EvalReport, read_report, write_plots, write_report
from sae_lens_afa.evals.sae_space import architecture_of
from sae_lens_afa.files import SAE_CFG_FILENAME, check_output_folder
from sae_lens_afa.loading.models import check_context, check_device, load_language_model
from sae_lens_afa.loading.saes import load_saes, shared_metadata
from sae_lens_afa.loading.text import load_text_dataset, text_dataset

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

DEMO_SAE = Path("runs/demo")
DEMO_MODEL = "kjv_gpt2"  # what the demo's SAEs say their model is
DEFAULT_PROMPTS = 16


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What `sae-lens-afa eval` is asked; an option that is None comes from the SAEs' metadata.

    Attributes:
        output: Folder to write.
        sae: Folders of saved SAEs, or of checkpoints of their training.
        release: Release of SAELens' directory, or a Hub repository, with `sae_id`s in it.
        sae_id: SAEs of the release.
        demo: Judge on the bundled model and the text it never saw; without `sae`, the SAEs of `sae-lens-afa demo`.
        model: See `sae_lens_afa.loading.models.load_language_model`.
        dataset: See `sae_lens_afa.loading.text.load_text_dataset`.
        hook: Hook point of all SAEs.
        context_size: Tokens of a prompt.
        tokens: Tokens to read.
        batch_size_prompts: Prompts per forward pass.
        cross_entropy_tokens: Of `tokens`, on how many to measure the model's cross-entropy too.
        positions: Positions of a prompt that are judged; all if empty.
        exclude_special_tokens: Leave out special tokens, or judge them. None: as each SAE was trained.
        outlier_norm_multiple: Report also without tokens of more than so many median norms.
        rescale_by_token_std: Norms in raw units for SAEs with layer_norm.
        device: cpu, cuda, ...
        per_token: Write tokens.parquet with every token that is kept.
        overwrite: Replace the files in an existing `output`.
    """

    output: Path
    sae: Sequence[Path] = ()
    release: str | None = None
    sae_id: Sequence[str] = ()
    demo: bool = False
    model: str | None = None
    dataset: str | None = None
    hook: str | None = None
    context_size: int | None = None
    tokens: int = DEFAULT_TOKENS
    batch_size_prompts: int = DEFAULT_PROMPTS
    cross_entropy_tokens: int = 0
    positions: Sequence[int] = ()
    exclude_special_tokens: bool | None = None
    outlier_norm_multiple: float | None = None
    rescale_by_token_std: bool = False
    device: str = "cpu"
    per_token: bool = False
    overwrite: bool = False


def eval_command(request: EvalRequest, *, progress: bool = True) -> EvalReport:
    """Judge SAEs and write metrics.json, plot_data.parquet, plots and, on request, tokens.parquet.

    What can be known to be wrong is said before anything is downloaded or computed. The folder is written when
    all is done, each file whole.

    Args:
        request: What to judge, on what, and where to write.
        progress: Show a progress bar.

    Returns:
        The results by SAE and the files; `str()` is the table for the terminal.

    Raises:
        ValueError, TypeError, OSError: one line that names the option and says what to do.
    """
    request = with_demo(request)
    check_request(request)
    check_output_folder(request.output, overwrite=request.overwrite)
    saes = load_requested_saes(request)
    model, store = model_and_text(request, saes)
    results = run_afa_evals(
        saes,
        store,
        model,
        tokens=request.tokens,
        batch_size_prompts=request.batch_size_prompts,
        cross_entropy_tokens=request.cross_entropy_tokens,
        exclude_special_tokens=request.exclude_special_tokens,
        positions=list(request.positions) or None,
        outlier_norm_multiple=request.outlier_norm_multiple,
        rescale_by_token_std=request.rescale_by_token_std,
        progress=progress,
    )
    described = {name: _description(sae) for name, sae in saes.items()}
    settings = {
        "model": _model_name(request, saes),
        "dataset": _dataset_name(request, saes),
        "tokens": request.tokens,
        "context_size": store.context_size,
        "positions": list(request.positions),
        "exclude_special_tokens": request.exclude_special_tokens,
        "outlier_norm_multiple": request.outlier_norm_multiple,
        "rescale_by_token_std": request.rescale_by_token_std,
    }
    return write_report(request.output, results, described, settings, per_token=request.per_token)


def plot_command(folder: Path, *, output: Path | None = None, formats: Sequence[str] = ("png", "html")) -> list[Path]:
    """Redraw the plots of an evaluation from its files.

    Args:
        folder: What `eval` wrote.
        output: Where the plots go; `folder` if None.
        formats: Of png, svg, pdf and html.

    Returns:
        The files written.

    Raises:
        ValueError, OSError: no such folder, files of another version or damaged, an unknown format.
    """
    report = read_report(folder)
    return write_plots(report, output or folder, formats)


def check_request(request: EvalRequest) -> None:
    """Refuse what is wrong in the options themselves.

    Raises:
        ValueError: naming the option.
    """
    if not request.sae and request.release is None:
        raise ValueError("nothing to judge: give --sae PATH, or --release NAME with --sae-id ID, or --demo.")
    if request.release is None and request.sae_id:
        raise ValueError("--sae-id names an SAE of a release: give --release too.")
    for option, value in (
        ("--tokens", request.tokens),
        ("--batch-size-prompts", request.batch_size_prompts),
        ("--context-size", request.context_size),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}.")
    if request.cross_entropy_tokens < 0:
        raise ValueError(f"--cross-entropy-tokens must not be negative, got {request.cross_entropy_tokens}.")
    if request.outlier_norm_multiple is not None and not request.outlier_norm_multiple > 0:
        raise ValueError(f"--outlier-norm-multiple must be > 0, got {request.outlier_norm_multiple}.")
    check_device(request.device)


def with_demo(request: EvalRequest) -> EvalRequest:
    """The request with what `demo` stands for filled in.

    Raises:
        ValueError: `demo` beside a model or text.
        FileNotFoundError: the demo's SAE is asked for and not there.
    """
    if not request.demo:
        return request
    if request.model is not None or request.dataset is not None:
        raise ValueError("--demo has its own model and text: leave out --model and --dataset.")
    if request.sae or request.release is not None:
        return request
    from sae_lens_afa.demo.run import demo_folders

    found = [folder for folder in demo_folders(DEMO_SAE) if (folder / SAE_CFG_FILENAME).is_file()]
    if not found:
        raise FileNotFoundError(
            f"there is no demo SAE in {DEMO_SAE}: run `sae-lens-afa demo` first, or give --sae PATH."
        )
    return replace(request, sae=found)


def load_requested_saes(request: EvalRequest) -> dict[str, SAE[Any]]:
    """The SAEs that the request names, checked against its options, on the hook that it asks for.

    Raises:
        ValueError, TypeError, OSError: one line that names the option and says what to do.
    """
    saes = load_saes(request.sae, request.release, request.sae_id, request.device)
    for name, sae in saes.items():
        _check_options(name, sae, request)
        if request.hook is not None:
            sae.cfg.metadata.hook_name = request.hook
    return saes


def _check_options(name: str, sae: SAE[Any], request: EvalRequest) -> None:
    # For what it refuses: an architecture, an option, a scaling that is not known.
    SAEJudge(
        sae,
        outlier_norm_multiple=request.outlier_norm_multiple,
        rescale_by_token_std=request.rescale_by_token_std,
    )
    metadata = sae.cfg.metadata
    if request.hook is None and metadata.hook_name is None:
        raise ValueError(f"{name} does not say which hook it codes: give --hook (blocks.6.hook_resid_pre, ...).")
    if request.context_size is None and metadata.context_size is None:
        raise ValueError(f"{name} does not say its context size: give --context-size.")
    if request.demo:
        return
    if request.model is None and metadata.model_name == DEMO_MODEL:
        raise ValueError(f"{name} was trained on the bundled model: give --demo (or --model and --dataset).")
    for field, option in (("model_name", "--model"), ("dataset_path", "--dataset")):
        if getattr(request, option.removeprefix("--")) is None and getattr(metadata, field) is None:
            raise ValueError(f"{name} does not say its {field}: give {option}.")


def model_and_text(request: EvalRequest, saes: dict[str, SAE[Any]]) -> tuple[HookedRootModule, ActivationsStore]:
    """The model that the request's SAEs code, and a store that reads the request's text through it.

    Raises:
        ValueError, OSError: an unknown model or text, or SAEs that do not agree on them.
    """
    dataset: Any
    if request.demo:
        from sae_lens_afa.demo import load_model, load_text

        model = load_model(request.device)
        dataset = text_dataset(load_text().held_out)
    else:
        dataset = load_text_dataset(_dataset_name(request, saes))
        model = load_language_model(
            _model_name(request, saes), request.device,
            shared_metadata(saes, "model_class_name"),
            shared_metadata(saes, "model_from_pretrained_kwargs"),
            hook_names=[sae.cfg.metadata.hook_name for sae in saes.values()],
        )  # fmt: skip
    context_size: int = request.context_size or shared_metadata(saes, "context_size")
    check_context(model, context_size, what="--context-size")
    first = next(iter(saes.values()))
    first.cfg.metadata.prepend_bos = shared_metadata(saes, "prepend_bos", default=True)
    with expected_messages_off():
        store = ActivationsStore.from_sae(
            model,
            first,
            dataset,
            context_size=context_size,
            streaming=True,
            store_batch_size_prompts=request.batch_size_prompts,
            total_tokens=request.tokens,
            device=request.device,
            disable_concat_sequences=shared_metadata(saes, "disable_concat_sequences", default=False),
            sequence_separator_token=_separator(saes),
        )
    return model, store


def _separator(saes: dict[str, SAE[Any]]) -> Any:
    """What was between documents in training; None is a choice there, and "bos" where an SAE does not say."""
    first = next(iter(saes.values())).cfg.metadata
    return shared_metadata(saes, "sequence_separator_token") if "sequence_separator_token" in first else "bos"


def _model_name(request: EvalRequest, saes: dict[str, SAE[Any]]) -> str:
    if request.demo:
        from sae_lens_afa.demo.model import MODEL_NAME

        return MODEL_NAME
    return request.model or shared_metadata(saes, "model_name")


def _dataset_name(request: EvalRequest, saes: dict[str, SAE[Any]]) -> str:
    if request.demo:
        return "King James Bible, held-out chapters"
    return request.dataset or shared_metadata(saes, "dataset_path")


def _description(sae: SAE[Any]) -> dict[str, Any]:
    cfg = sae.cfg
    return {
        "architecture": architecture_of(sae),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "hook_name": cfg.metadata.hook_name,
        "normalize_activations": cfg.normalize_activations,
    }
