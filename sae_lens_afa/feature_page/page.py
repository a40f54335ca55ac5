"""The page itself: a template with its style, its script, plotly's, and the packed content, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from sae_lens_afa.feature_page.content import PageContent
from sae_lens_afa.feature_page.examples import AFTER, BEFORE
from sae_lens_afa.feature_page.packed import packed


def write_page(path: Path, about: Mapping[str, Any], content: PageContent) -> None:
    """Write the page.

    Args:
        path: The file.
        about: Names and sizes for its head.
        content: What it shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    data = packed({**about, "before": BEFORE, "after": AFTER, "texts": content.texts}, content.arrays)
    own = files("sae_lens_afa.feature_page")
    environment = Environment(
        loader=PackageLoader("sae_lens_afa.feature_page", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html").render(
        about=about, version=version("sae-lens-afa"), data=data,
        style=(own / "page.css").read_text(encoding="utf-8"), script=(own / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
