"""Model and text that SAEs are judged on: given by name, as objects, or named by the SAEs' metadata."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from datasets import Dataset
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAE

from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.defaults import BUNDLED_MODEL
from sae_lens_afa.loading.models import check_context, load_language_model
from sae_lens_afa.loading.saes import shared_metadata
from sae_lens_afa.loading.text import checked_data, load_text_dataset

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

SAEs: TypeAlias = Mapping[str, SAE[Any]]


class Inputs(NamedTuple):
    """Model and text, ready to be read.

    Attributes:
        model: Language model.
        store: Prompts of the text for it.
        model_name: Name of the model.
        dataset_name: Name of the text.
    """

    model: HookedRootModule
    store: ActivationsStore
    model_name: str
    dataset_name: str


def check_sizes(**sizes: int | None) -> None:
    """Raise ValueError, naming the parameter, unless each size that is given is at least 1."""
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


@contextmanager
def inputs_for(
    saes: SAEs,
    *,
    model: str | HookedRootModule | None,
    dataset: str | Dataset | None,
    hook: str | None,
    context_size: int | None,
    tokens: int,
    batch_size_prompts: int,
    device: str,
) -> Generator[Inputs]:
    """Load the model that SAEs code, and a store that reads text through it as in their training.

    Meanwhile the SAEs' metadata name the hook that is given. What is neither given nor named by them is refused before
    anything is loaded.

    Args:
        saes: By name.
        model: A name, a folder, or a model; None takes the name that the SAEs' metadata agree on.
        dataset: A name, a file, a folder, or text as `loading.text.text_dataset` makes it; None as for `model`.
        hook: Hook point of all SAEs; None leaves them as they are.
        context_size: Tokens of a prompt; None as for `model`.
        tokens: Tokens that will be read.
        batch_size_prompts: Prompts per forward pass.
        device: cpu, cuda, ...

    Raises:
        ValueError: naming the SAE and the parameter.
        ValueError, OSError: an unknown model or text, or SAEs that do not agree on them.
    """
    _check(saes, model=model, dataset=dataset, hook=hook, context_size=context_size)
    with metadata_set(saes.values(), hook_name=hook):
        yield _load(
            saes, model=model, dataset=dataset, context_size=context_size, tokens=tokens,
            batch_size_prompts=batch_size_prompts, device=device,
        )  # fmt: skip


def _check(
    saes: SAEs,
    *,
    model: str | HookedRootModule | None,
    dataset: str | Dataset | None,
    hook: str | None,
    context_size: int | None,
) -> None:
    """Raise ValueError for what is neither given nor named by the SAEs' metadata."""
    for name, sae in saes.items():
        metadata = sae.cfg.metadata
        if hook is None and metadata.hook_name is None:
            raise ValueError(f"{name} does not say which hook it codes: give hook (blocks.6.hook_resid_pre, ...).")
        if context_size is None and metadata.context_size is None:
            raise ValueError(f"{name} does not say its context size: give context_size.")
        if model is None and metadata.model_name == BUNDLED_MODEL:
            raise ValueError(
                f"{name} was trained on the bundled model: give model and dataset (on the command line --demo)."
            )
        if model is None and metadata.model_name is None:
            raise ValueError(f"{name} does not say its model_name: give model.")
        if dataset is None and metadata.dataset_path is None:
            raise ValueError(f"{name} does not say its dataset_path: give dataset.")


def _load(
    saes: SAEs,
    *,
    model: str | HookedRootModule | None,
    dataset: str | Dataset | None,
    context_size: int | None,
    tokens: int,
    batch_size_prompts: int,
    device: str,
) -> Inputs:
    # The text first: it is cheaper to find missing.
    text, dataset_name = _text(shared_metadata(saes, "dataset_path") if dataset is None else dataset)
    language_model, model_name = _model(saes, shared_metadata(saes, "model_name") if model is None else model, device)
    context = context_size or shared_metadata(saes, "context_size")
    check_context(language_model, context, what="context_size")
    first = next(iter(saes.values()))
    prepend_bos = shared_metadata(saes, "prepend_bos", default=True)
    with expected_messages_off(), metadata_set([first], prepend_bos=prepend_bos):
        store = ActivationsStore.from_sae(
            language_model,
            first,
            text,
            context_size=context,
            streaming=True,
            store_batch_size_prompts=batch_size_prompts,
            total_tokens=tokens,
            device=device,
            disable_concat_sequences=shared_metadata(saes, "disable_concat_sequences", default=False),
            sequence_separator_token=_separator(saes),
        )
    return Inputs(language_model, store, model_name, dataset_name)


@contextmanager
def metadata_set(saes: Iterable[SAE[Any]], **fields: Any) -> Generator[None]:
    """Set fields of the SAEs' metadata for a while; a field that is None is left as it is."""
    wanted = {name: value for name, value in fields.items() if value is not None}
    settings = [vars(sae.cfg.metadata) for sae in saes]
    before = [dict(each) for each in settings]
    for each in settings:
        each.update(wanted)
    try:
        yield
    finally:
        for each, values in zip(settings, before, strict=True):
            each.clear()
            each.update(values)


def _text(dataset: str | Dataset) -> tuple[Any, str]:
    if isinstance(dataset, str):
        return load_text_dataset(dataset, what="dataset"), dataset
    return checked_data(dataset, "dataset"), dataset.info.dataset_name or "text"


def _model(saes: SAEs, model: str | HookedRootModule, device: str) -> tuple[HookedRootModule, str]:
    if not isinstance(model, str):
        return model, str(getattr(getattr(model, "cfg", None), "model_name", None) or type(model).__name__)
    loaded = load_language_model(
        model, device,
        shared_metadata(saes, "model_class_name"),
        shared_metadata(saes, "model_from_pretrained_kwargs"),
        hook_names=[sae.cfg.metadata.hook_name for sae in saes.values()],
        what="model",
    )  # fmt: skip
    return loaded, model


def _separator(saes: SAEs) -> Any:
    """Return what was between documents in training; None is a choice there, and "bos" where an SAE does not say."""
    first = next(iter(saes.values())).cfg.metadata
    return shared_metadata(saes, "sequence_separator_token") if "sequence_separator_token" in first else "bos"
