"""A page of features on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_afa.files import FEATURES_FILENAME

if TYPE_CHECKING:
    import pandas as pd

TABLE = "latents.csv"


@dataclass(frozen=True)
class FeaturesReport:
    """The features of an SAE, written to a folder; `str()` says in a few lines what there is.

    Attributes:
        folder: Its place.
        title: Name of the SAE, with its hook point.
        table: A row for each latent: `latent`; `density`, the share of tokens on which it is active; `mean` and `max`
            (in size) of its activations there; `energy_share`, its part in sum ||f_i d_i||^2 over all tokens;
            `is_dead`, no token here activates it; `nearest` decoder row and its `cosine`; `token`, the text of its
            strongest one.
        n_tokens: Tokens that were coded.

    Example:
        >>> from sae_lens_afa.feature_page import FeaturesReport
        >>> FeaturesReport.__name__
        'FeaturesReport'
    """

    folder: Path
    title: str
    table: pd.DataFrame
    n_tokens: int

    @property
    def page(self) -> Path:
        """The page, a single HTML file."""
        return self.folder / FEATURES_FILENAME

    @property
    def files(self) -> list[Path]:
        """The page and the table of its latents."""
        return [self.page, self.folder / TABLE]

    def __str__(self) -> str:
        table: Any = self.table
        alive = table[~table["is_dead"]]
        dead = len(table) - len(alive)
        lines = [f"{self.title}: {len(table):,} latents on {self.n_tokens:,} tokens"]
        lines.append(f"  active on some token   {len(alive):,}; on none {dead:,}")
        if len(alive) > 0:
            lines.append(f"  density, median        {alive['density'].median():.2e}")
            most = alive.nlargest(1, "energy_share").iloc[0]
            lines.append(f"  most energy            latent {most['latent']}: {most['energy_share']:.1%}")
        return "\n".join(lines)
