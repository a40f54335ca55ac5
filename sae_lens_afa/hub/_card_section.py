"""Section of a model card that says what each SAE is and how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_lens_afa.architectures import ARCHITECTURES
from sae_lens_afa.evals.metric_list import CARD, metrics_shown_in
from sae_lens_afa.files import FEATURES_FILENAME, SAE_CFG_FILENAME
from sae_lens_afa.hub._contents import METRICS_FILENAME, PLOT_FILENAME, SAEFacts, is_number
from sae_lens_afa.hub._remote import ROOT, in_folder
from sae_lens_afa.interop.agreement import METADATA_KEY

# Architectures that SAELens knows by this package alone.
_OWN = [each.name for each in ARCHITECTURES if not each.saved_as]
_EXPLAINED = (
    "L0: mean active features per token. CE score: part of the loss that zeroing the layer causes which the SAE"
    " recovers. eps-LBO: lower bound on how far from orthogonal the dictionary has to be to explain ‖f‖ ≠ ‖z‖;"
    " over-activated: tokens with ‖f‖ > ‖z‖ ([arXiv 2503.24277](https://arxiv.org/abs/2503.24277))."
)


def card_section(repo_id: str, saes: Mapping[str, SAEFacts]) -> str:
    """Return the section on a repository's SAEs, in Markdown."""
    first = next(iter(saes))
    parts = [
        "## SAEs",
        "\n".join(_table(saes)),
        *([_EXPLAINED] if any(facts.metrics for facts in saes.values()) else []),
        "### Load",
        _snippet(repo_id, first, own=saes[first].cfg.get("architecture") in _OWN),
        *_approximations(saes),
        *_pages(saes),
        "### Training",
        "\n".join(_training_table(saes)),
        *_plots(saes),
    ]
    return "\n\n".join(parts)


def _table(saes: Mapping[str, SAEFacts]) -> list[str]:
    columns = ["architecture", "model", "hook", "d_in", "d_sae", *(metric.heading for metric in metrics_shown_in(CARD))]
    rows = {sae_id: facts.describe() | facts.headlines() for sae_id, facts in saes.items()}
    shown = [column for column in columns if any(column in row for row in rows.values())]
    return _markdown_table(
        ["sae_id", *shown], [[_code(name), *(row.get(c, "") for c in shown)] for name, row in rows.items()]
    )


def _training_table(saes: Mapping[str, SAEFacts]) -> list[str]:
    """Return a row for each setting and a column for each SAE; SAEs with the same settings share a column."""
    columns: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for sae_id, facts in saes.items():
        columns.setdefault(tuple(facts.settings().items()), []).append(sae_id)
    names = list(dict.fromkeys(name for settings in columns for name, _ in settings))
    settings = [dict(column) for column in columns]
    return _markdown_table(
        ["", *(", ".join(map(_code, ids)) for ids in columns.values())],
        [[name, *(column.get(name, "") for column in settings)] for name in names],
    )


def _snippet(repo_id: str, sae_id: str, *, own: bool) -> str:
    path = f', "{sae_id}"'
    lines = [
        "```python",
        "import sae_lens_afa as afa  # pip install sae-lens-afa",
        "",
        f'sae = afa.load("{repo_id}"{path})',
        "```",
    ]
    if sae_id != ROOT:
        why = "after `import sae_lens_afa`, which makes its architectures known to SAELens" if own else "by itself"
        lines += [
            "",
            f"SAELens loads it too, {why}:",
            "",
            "```python",
            *(["import sae_lens_afa"] if own else []),
            "from sae_lens import SAE",
            "",
            f'sae = SAE.from_pretrained("{repo_id}", "{sae_id}")',
            "```",
        ]
    return "\n".join(lines)


def _approximations(saes: Mapping[str, SAEFacts]) -> list[str]:
    """Say of SAEs that stand for another how good they are, as `export_jumprelu` measured it."""
    reports = {sae_id: facts.metadata(METADATA_KEY) for sae_id, facts in saes.items()}
    lines = [
        f"- {_code(sae_id)}: {report['note']} L0 {_rounded(report, 'l0_original')} becomes"
        f" {_rounded(report, 'l0_export')}, explained variance {_rounded(report, 'explained_variance_original')}"
        f" becomes {_rounded(report, 'explained_variance_export')}."
        for sae_id, report in reports.items()
        if isinstance(report, Mapping) and "note" in report
    ]
    return ["### Approximations", "\n".join(lines)] if lines else []


def _rounded(report: Mapping[str, Any], name: str) -> str:
    return f"{report[name]:.4g}" if is_number(report.get(name)) else "(unknown)"


def _pages(saes: Mapping[str, SAEFacts]) -> list[str]:
    """Name the pages of features: the Hub shows HTML as text, so a page is to be downloaded."""
    lines = [
        f"- {_code(sae_id)}: [{FEATURES_FILENAME}]({in_folder(sae_id, FEATURES_FILENAME).replace(' ', '%20')})"
        for sae_id, facts in saes.items()
        if facts.has_page
    ]
    said = "Download the page and open it in a browser: what each latent responds to, promotes and comes with."
    return ["### Features", said, "\n".join(lines)] if lines else []


def _plots(saes: Mapping[str, SAEFacts]) -> list[str]:
    images = [
        f"![ZF plot of {sae_id}]({in_folder(sae_id, PLOT_FILENAME).replace(' ', '%20')})"
        for sae_id, facts in saes.items()
        if facts.has_plot
    ]
    if not images:
        return []
    said = (
        "Each point is a token: the norm of its features against the norm of its activation. Above the line y = x the"
        f" features are over-activated, below it under-activated. All metrics are in each SAE's `{METRICS_FILENAME}`,"
        f" its configuration in `{SAE_CFG_FILENAME}`."
    )
    return ["### ZF plots", said, *images]


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def _code(text: str) -> str:
    return f"`{text}`"
