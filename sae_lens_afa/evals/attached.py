"""The model without the SAEs that are attached to it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sae_lens.analysis.hooked_sae_transformer import set_deep_attr
from transformer_lens.hook_points import HookPoint

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


@contextmanager
def saes_detached(model: HookedRootModule) -> Generator[None]:
    """Take attached SAEs off the model for a while: activations are to be the model's own, at its own hook points.

    The very wrappers are put back, with their settings of the error term and of special tokens and the hooks in them;
    SAELens' `reset_saes` and `add_sae` would make new ones.
    """
    wrappers = _wrappers(model)
    _put(model, {place: HookPoint() for place in wrappers})
    try:
        yield
    finally:
        _put(model, wrappers)
        for wrapper in wrappers.values():
            wrapper._captured_input = None  # a transcoder's own hook has gone on reading


# Any: SAELens' two classes of models keep the SAEs that are attached to them in private attributes.
def _wrappers(model: Any) -> dict[str, Any]:
    """Return what is attached, by the hook point in whose place it is."""
    attached: dict[str, Any] = getattr(model, "_acts_to_saes", {})
    if not attached:
        return {}
    actual = getattr(model, "_resolve_hook_name", str)
    return {model._transcoder_output_hooks.get(name, actual(name)): wrapper for name, wrapper in attached.items()}


def _put(model: Any, modules: dict[str, Any]) -> None:
    for place, module in modules.items():
        set_deep_attr(model, place, module)
    registry: dict[str, Any] | None = getattr(model, "_hook_registry", None)
    if registry is None:
        if modules:
            model.setup()  # names the hooks again
        return
    for place, module in modules.items():  # of a TransformerBridge, which does not look for hooks again
        if isinstance(module, HookPoint):
            module.name = place
        registry[place] = module
