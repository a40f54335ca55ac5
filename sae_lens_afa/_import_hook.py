"""Registration of the architectures right after SAELens has been imported, without importing it: that takes seconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SAE_LENS = "sae_lens"
# Not `sae_lens_afa.saes` itself: another thread may be in the middle of importing that, waiting for SAELens.
_ARCHITECTURES = "sae_lens_afa.saes.registration"


def register_with_sae_lens() -> None:
    """Register the architectures: now if SAELens is imported, else right after it has been."""
    if sys.modules.get(_SAE_LENS) is not None:
        importlib.import_module("sae_lens_afa.saes")
    else:
        # In place of one that an earlier import of this package has left: the two would ask each other for ever.
        others = (finder for finder in sys.meta_path if type(finder).__module__ != __name__)
        sys.meta_path[:] = [_Finder(), *others]


class _Finder(MetaPathFinder):
    """Finder of SAELens that asks the others and has the architectures registered after SAELens was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _SAE_LENS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        # Asking for the spec (`importlib.util.find_spec`) is no import: the finder stays until there is one.
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """SAELens' own loader, and the registration after it; a failure of either leaves the finder for the next try."""

    def __init__(self, own: Loader, finder: _Finder) -> None:
        self._own, self._finder = own, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        importlib.import_module(_ARCHITECTURES)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)  # for those who ask a spec's loader for sources or files
