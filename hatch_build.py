"""Entry points of the distribution, made from the list of architectures when it is built."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ArchitecturesHook(MetadataHookInterface):
    """Metadata hook that declares each architecture, for the plugin discovery that SAELens does not have yet."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the entry points. The list is run as a file: the package itself is not installed while it is built."""
        listed = runpy.run_path(str(Path(self.root, "sae_lens_afa", "architectures.py")))["ARCHITECTURES"]
        metadata["entry-points"] = {"sae_lens.architectures": {entry.name: "sae_lens_afa" for entry in listed}}
