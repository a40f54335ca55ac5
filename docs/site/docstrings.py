"""Docstrings as mkdocstrings reads them: its name of the section with doctests is Examples."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class ExampleSections(Extension):
    """Renames "Example:", which torch and torchmetrics have too, and which would be read as plain text."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
