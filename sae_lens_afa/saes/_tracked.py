"""What a training SAE tracks beside its weights: persistent buffers that a resumed run goes on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor
from typing_extensions import override

_Method = TypeVar("_Method", bound=Callable[..., Any])


def uncompiled(method: _Method) -> _Method:
    """Keep a method out of torch.compile's graphs: one that counts batches would be compiled anew for each count."""
    return cast(_Method, torch.compiler.disable(method))


class TrackedState(TrainingSAE[Any]):
    """Buffers kept in their precision whatever dtype the SAE is cast to, and no part of the inference model.

    A base beside SAELens' own; `_tracked` names the buffers.
    """

    _tracked: tuple[str, ...] = ()

    def drop_caches(self) -> None:
        """Forget what was derived from the buffers, which have been replaced."""

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in self._tracked:
            state_dict.pop(name, None)

    # A cast to bfloat16, in which a moving average stands still, is for the weights alone. SAELens casts on loading.
    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self.drop_caches()
        dtypes = {name: self.get_buffer(name).dtype for name in self._tracked}
        keys = super().load_state_dict(state_dict, strict, assign)
        for name, dtype in dtypes.items():
            self._buffers[name] = self.get_buffer(name).to(dtype)
        return keys

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.drop_caches()
        kept = {name: self.get_buffer(name) for name in self._tracked}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            moved = self.get_buffer(name)
            if moved.dtype != before.dtype:
                self._buffers[name] = (moved if before.is_meta else before).to(moved.device, before.dtype)
        return self
