"""The model card: metadata for the Hub's search, and one section that says what each SAE is and how to load it.

Only the section between two markers is ours, and of the metadata only the fields below: a card that somebody wrote by
hand keeps its text and its own fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sae_lens_afa.files import SAE_CFG_FILENAME
from sae_lens_afa.hub._contents import FIGURES, METRICS_FILENAME, PLOT_FILENAME, SAEFacts, is_number, short_name
from sae_lens_afa.hub._remote import ROOT, in_folder
from sae_lens_afa.interop.agreement import METADATA_KEY

BEGIN = "<!-- sae-lens-afa: begin; this section is written anew by each push, put your own text outside of it -->"
END = "<!-- sae-lens-afa: end -->"
_TAGS = ("sparse-autoencoder", "saelens", "interpretability", "sae-lens-afa")
_OWN = ("top_afa", "afa_threshold")  # architectures that SAELens knows by this package alone
_TASK = "feature-extraction"
# TransformerLens' names for models of the Hub's first days, which have moved under an owner.
_MOVED = {
    "distilgpt2": "distilbert/distilgpt2",
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
}
# As in the section of AFAResult's documentation.
_EXPLAINED = (
    "L0: mean active features per token. CE score: part of the loss that zeroing the layer causes which the SAE"
    " recovers. eps-LBO: lower bound on how far from orthogonal the dictionary has to be to explain ‖f‖ ≠ ‖z‖;"
    " over-activated: tokens with ‖f‖ > ‖z‖ ([arXiv 2503.24277](https://arxiv.org/abs/2503.24277))."
)


@dataclass(frozen=True)
class CardOptions:
    """What the pusher says beside the SAEs; None keeps what the card has, or what the SAEs say."""

    license: str | None = None
    datasets: Sequence[str] | None = None
    base_model: str | Sequence[str] | None = None


def base_model_id(model_name: Any) -> str | None:
    """The Hub's id of a model by its name in TransformerLens; None where it has none (a local folder, a toy)."""
    from transformer_lens.supported_models import MODEL_ALIASES

    name = short_name(model_name)
    if name is None:
        return None
    official = next((known for known, aliases in MODEL_ALIASES.items() if name in aliases), name)
    official = _MOVED.get(official, official)
    return official if official.count("/") == 1 else None


def dataset_id(dataset_path: Any) -> str | None:
    """The Hub's id of a dataset; None for a local one."""
    name = short_name(dataset_path)
    return name if name == dataset_path and name is not None and name.count("/") == 1 and " " not in name else None


def write_card(existing: str | None, repo_id: str, saes: Mapping[str, SAEFacts], options: CardOptions) -> str:
    """The card of a repository with these SAEs.

    Args:
        existing: The card that is there, if any; its own text and fields stay.
        repo_id: "owner/name".
        saes: All SAEs of the repository by id.
        options: What the pusher says.

    Raises:
        ValueError: the existing card's metadata cannot be read.
    """
    try:
        card = ModelCard(existing or f"---\n{{}}\n---\n\n# {repo_id.partition('/')[2]}\n")
    except Exception as error:  # of the YAML parser, or of huggingface_hub: there is no common class
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the metadata of {repo_id}'s README.md cannot be read ({said}): mend it, then push."
        ) from error
    _update_metadata(card.data, repo_id, saes, options)
    text = _replace_section(card.text.strip("\n"), _section(repo_id, saes))
    return f"---\n{card.data.to_yaml()}\n---\n\n{text}\n"


def _update_metadata(data: Any, repo_id: str, saes: Mapping[str, SAEFacts], options: CardOptions) -> None:
    assert isinstance(data, ModelCardData)
    data.library_name = data.library_name or "saelens"
    data.pipeline_tag = data.pipeline_tag or _TASK
    data.language = data.language or "en"
    data.license = options.license or data.license
    data.tags = _merged(data.tags, [*_TAGS, *(str(facts.cfg.get("architecture")) for facts in saes.values())])
    models = (base_model_id(facts.metadata("model_name")) for facts in saes.values())
    data.base_model = _one_or_many(
        _merged(data.base_model, models) if options.base_model is None else options.base_model
    )
    datasets = (dataset_id(facts.metadata("dataset_path")) for facts in saes.values())
    data.datasets = _merged(data.datasets, datasets) if options.datasets is None else list(options.datasets)
    data.datasets = data.datasets or None
    ours = [result for sae_id, facts in saes.items() for result in _eval_results(sae_id, facts)]
    # Whatever was said of these SAEs before is said anew, or no longer known.
    names = {_metric_name(label, sae_id) for sae_id in saes for label in FIGURES.values()}
    kept = [result for result in data.eval_results or () if result.metric_name not in names]
    data.eval_results = [*kept, *ours] or None
    if data.eval_results:
        data.model_name = data.model_name or repo_id.partition("/")[2]


def _eval_results(sae_id: str, facts: SAEFacts) -> list[EvalResult]:
    dataset = short_name(facts.metrics.get("dataset")) or "activations"  # not what it was trained on
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=dataset_id(dataset) or "other",
            dataset_name=dataset,
            metric_type=name,
            metric_name=_metric_name(FIGURES[name], sae_id),
            metric_value=value,
        )
        for name, value in facts.measured().items()
    ]


def _metric_name(label: str, sae_id: str) -> str:
    # huggingface_hub merges results of one task and dataset: the id keeps the SAEs apart.
    return f"{label} ({sae_id})"


def _section(repo_id: str, saes: Mapping[str, SAEFacts]) -> str:
    first = next(iter(saes))
    parts = [
        BEGIN,
        "## SAEs",
        "\n".join(_table(saes)),
        *([_EXPLAINED] if any(facts.metrics for facts in saes.values()) else []),
        "### Load",
        _snippet(repo_id, first, own=saes[first].cfg.get("architecture") in _OWN),
        *_approximations(saes),
        "### Training",
        "\n".join(_training_table(saes)),
        *_plots(saes),
        END,
    ]
    return "\n\n".join(parts)


def _table(saes: Mapping[str, SAEFacts]) -> list[str]:
    columns = ["architecture", "model", "hook", "d_in", "d_sae", *FIGURES.values()]
    rows = {sae_id: facts.describe() | facts.figures() for sae_id, facts in saes.items()}
    shown = [column for column in columns if any(column in row for row in rows.values())]
    return _markdown_table(
        ["sae_id", *shown], [[_code(name), *(row.get(c, "") for c in shown)] for name, row in rows.items()]
    )


def _training_table(saes: Mapping[str, SAEFacts]) -> list[str]:
    """A row for each setting, a column for each SAE; SAEs with the same settings share a column."""
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
    """Of SAEs that stand for another, how good they are: as `export_jumprelu` measured it."""
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
        f" features are over-activated, below it under-activated. All figures are in each SAE's `{METRICS_FILENAME}`,"
        f" its configuration in `{SAE_CFG_FILENAME}`."
    )
    return ["### ZF plots", said, *images]


def _replace_section(text: str, section: str) -> str:
    """The text with its section between the markers replaced, or with one at the end."""
    start, end = text.find(BEGIN), text.find(END)
    if 0 <= start < end:
        return text[:start] + section + text[end + len(END) :]
    return f"{text}\n\n{section}" if text else section


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def _code(text: str) -> str:
    return f"`{text}`"


def _merged(old: str | Sequence[str] | None, new: Iterable[str | None]) -> list[str]:
    own = [old] if isinstance(old, str) else list(old or ())
    return list(dict.fromkeys([*own, *(name for name in new if name)]))


def _one_or_many(names: str | Sequence[str]) -> Any:
    if isinstance(names, str):
        return names
    return names[0] if len(names) == 1 else list(names) or None
