"""Language models by name or folder; checks of a device, a hook and a context before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.load_model import load_model
from safetensors import SafetensorError

# TransformerLens 2 has these names here, 3 here too.
from transformer_lens.loading_from_pretrained import (
    OFFICIAL_MODEL_NAMES,  # pyright: ignore[reportPrivateImportUsage]
    get_pretrained_model_config,
)
from transformers import AutoConfig

from sae_lens_afa.loading.gpt2_folder import load_gpt2_folder
from sae_lens_afa.loading.names import did_you_mean, first_line, in_own_words, is_path, near

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

HOOKED, PROXY = "HookedTransformer", "AutoModelForCausalLM"
# Hooks that TransformerLens has in every model, and the field of the model's config with which it computes them.
_SWITCHES = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}


def check_device(device: str, *, what: str = "device") -> None:
    """Raise ValueError unless tensors can be made on `device`; the message calls it `what`."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = first_line(error).rstrip(".")
        raise ValueError(f"{what} {device!r} cannot be used here: {said}. Try {what}='cpu'.") from error


def load_language_model(
    name: str,
    device: str,
    class_name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    hook_names: Sequence[str] = (),
    what: str = "model",
) -> HookedRootModule:
    """Return the language model of a name or folder.

    Args:
        name: A name that TransformerLens knows; a Hugging Face model folder: of GPT-2's architecture for
            "HookedTransformer", of any for "AutoModelForCausalLM".
        device: Where it is to live.
        class_name: SAELens' `model_class_name`; None is "HookedTransformer".
        kwargs: SAELens' `model_from_pretrained_kwargs`.
        hook_names: For "AutoModelForCausalLM": the modules whose outputs are wanted; all if empty.
        what: Name of the parameter, for messages.

    Raises:
        FileNotFoundError: a folder that is not there, or holds no model.
        ValueError: an unknown name (the message lists near ones), or a folder that this class does not read.
        OSError: it cannot be downloaded.
    """
    class_name = class_name or HOOKED
    if not name:
        raise ValueError(f"{what} is empty: give a model's folder or its name.")
    if is_path(name) and not Path(name).is_dir():
        raise FileNotFoundError(f"{what} {name} is not a folder; give a model's folder or its name.")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{what} {name} has no config.json: it must be a Hugging Face model folder.")
    try:
        if class_name == HOOKED and Path(name).is_dir():
            return load_gpt2_folder(name, device)
        return load_model(class_name, name, device, dict(kwargs or {}), list(hook_names) or None)
    except (ValueError, KeyError, RuntimeError, SafetensorError, OSError) as error:
        if class_name == PROXY and "hook_names not found" in str(error):
            raise ValueError(_unknown_modules(name, device, kwargs, hook_names)) from error
        raise _not_loaded(error, name, what) from error


def _not_loaded(error: Exception, name: str, what: str) -> OSError | ValueError:
    """Return a library's error in one line; of an unknown name, with those that are near."""
    # TransformerLens answers an unknown name with all names that it knows.
    said = first_line(error).partition(" Valid official")[0]
    close = near(name, OFFICIAL_MODEL_NAMES) if "not found" in str(error) and not isinstance(error, OSError) else ""
    return in_own_words(error, f"{what} {name!r} cannot be loaded: {said[:240]}{close}")


def model_width(name: str, class_name: str = HOOKED, *, what: str = "model") -> int:
    """Return the d_model of a name or folder, from its configuration alone.

    Args:
        name: As for `load_language_model`.
        class_name: SAELens' `model_class_name`.
        what: Name of the parameter, for messages.

    Raises:
        FileNotFoundError, ValueError, OSError: as `load_language_model`.
    """
    if is_path(name) and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{what} {name} is not a Hugging Face model folder (no config.json).")
    try:
        if Path(name).is_dir() or class_name == PROXY:
            config = AutoConfig.from_pretrained(name, local_files_only=Path(name).is_dir())
            return int(config.get_text_config().hidden_size)
        return int(get_pretrained_model_config(name).d_model)
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise _not_loaded(error, name, what) from error


def _unknown_modules(name: str, device: str, kwargs: Mapping[str, Any] | None, hook_names: Sequence[str]) -> str:
    """Return the message for a module that the model does not have; the model is loaded once more for its names."""
    model = load_model(PROXY, name, device, dict(kwargs or {}))
    (first, *_) = (hook for hook in hook_names if hook not in model.hook_dict)
    return _no_hook(model, first)


def _no_hook(model: HookedRootModule, hook_name: str) -> str:
    """Return the message for a hook that the model does not have."""
    return f"hook_name: the model has no hook {hook_name!r}{did_you_mean(hook_name, model.hook_dict) or '.'}"


def check_hook_name(model: HookedRootModule, hook_name: str) -> None:
    """Raise ValueError, with the nearest names, unless the model has such a hook."""
    if hook_name not in model.hook_dict:
        raise ValueError(_no_hook(model, hook_name))


@torch.no_grad()
def check_hook(
    model: HookedRootModule, hook_name: str, d_in: int, head_index: int | None = None, *, reshaping: str | None = None
) -> None:
    """Run one token through the model and compare what it gives at the hook with the SAE's width.

    Args:
        model: The language model.
        hook_name: A hook of it.
        d_in: The SAE's width.
        head_index: The head that the SAE codes; None for all.
        reshaping: The SAE's `reshape_activations`, where the SAE is to be attached to the hook; None does not ask.

    Raises:
        ValueError: the model has no such hook, does not compute it with its settings, or gives activations there that
            are not `d_in` wide; an SAE on all heads that does not join them.

    Example:
        >>> import sae_lens_afa as afa
        >>> afa.runner.check_hook(afa.demo.load_model(), "blocks.1.hook_resid_pre", d_in=100)
        Traceback (most recent call last):
        ValueError: d_in is 100, but activations at blocks.1.hook_resid_pre are 192 wide: set d_in=192.
    """
    check_hook_name(model, hook_name)
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    # The class's own method: with compile_llm the instance's is compiled, for the batches to come.
    cache: Any = type(model).run_with_cache(model, token, names_filter=[hook_name])[1]
    if hook_name not in cache:
        switch = _SWITCHES.get(hook_name.rpartition(".")[2])
        advice = f": it does so with {switch} in the model's config" if switch else ""
        raise ValueError(f"hook_name: the model has the hook {hook_name!r} but does not compute it{advice}.")
    acts: torch.Tensor = cache[hook_name]
    if head_index is not None and acts.ndim < 4:
        raise ValueError(f"hook_head_index is {head_index}, but {hook_name} has no heads: leave it out.")
    # [batch, position, width], or [batch, position, heads, d_head] of which one head or all are taken.
    width = acts.shape[-1] if head_index is not None else acts[0, 0].numel()
    if width != d_in:
        raise ValueError(f"d_in is {d_in}, but activations at {hook_name} are {width} wide: set d_in={width}.")
    if reshaping == "none" and head_index is None and acts.ndim > 3 and hook_name.endswith("hook_z"):
        raise ValueError(
            f"reshape_activations: {hook_name} gives [heads, d_head], and an SAE that does not join them cannot be"
            " attached to the model: set reshape_activations='hook_z' (or hook_head_index for one head)."
        )


def check_context(model: HookedRootModule, context_size: int, *, what: str = "context_size") -> None:
    """Raise ValueError if prompts of this length are longer than the model reads."""
    longest = context_of(model)
    if longest is not None and context_size > longest:
        raise ValueError(f"{what} is {context_size}, but the model reads at most {longest} tokens: give {longest}.")


def context_of(model: Any) -> int | None:
    """Return the greatest length of a prompt; None where the model does not say."""
    config = getattr(getattr(model, "model", None), "config", None) or getattr(model, "cfg", None)
    for name in ("n_ctx", "max_position_embeddings", "n_positions"):
        if isinstance(value := getattr(config, name, None), int) and value > 0:
            return value
    return None
