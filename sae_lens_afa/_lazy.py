"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: dict[str, Any], names_of: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose names live in modules that take long to import.

    `dir()` offers what `__all__` names, whatever else of the package has been imported by then.

    Args:
        package: The package's `globals()`.
        names_of: By module, the names that the package takes from it.
        modules: Modules of the package that are found as its attributes without being imported first.
    """
    home = {name: module for module, names in names_of.items() for name in names}

    def find(name: str) -> Any:
        if name in home:
            value = getattr(importlib.import_module(home[name]), name)
        elif name in modules:
            value = importlib.import_module(f"{package['__name__']}.{name}")
        else:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        package[name] = value  # from now on it is found at once
        return value

    def offered() -> list[str]:
        return sorted({*package["__all__"], *(name for name in package if name.startswith("__"))})

    return find, offered
