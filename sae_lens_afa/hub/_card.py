"""Model card: metadata for the Hub's search, and one section on the SAEs.

Only the section between two markers is ours, and of the metadata only the fields below: a card that somebody wrote by
hand keeps its text and its own fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sae_lens_afa.evals.metric_list import CARD, metrics_shown_in
from sae_lens_afa.hub._card_section import card_section
from sae_lens_afa.hub._contents import SAEFacts, short_name

BEGIN = "<!-- sae-lens-afa: begin; this section is written anew by each push, put your own text outside of it -->"
END = "<!-- sae-lens-afa: end -->"
_TAGS = ("sparse-autoencoder", "saelens", "interpretability", "sae-lens-afa")
_TASK = "feature-extraction"
# TransformerLens' names for models of the Hub's first days, which have moved under an owner.
_MOVED = {
    "distilgpt2": "distilbert/distilgpt2",
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
}


@dataclass(frozen=True)
class CardOptions:
    """Fields that the pusher gives; None keeps what the card has, or what the SAEs say."""

    license: str | None = None
    datasets: Sequence[str] | None = None
    base_model: str | Sequence[str] | None = None


def base_model_id(model_name: Any) -> str | None:
    """Return the Hub's id of a model by its name in TransformerLens; None where it has none (a local folder, a toy)."""
    from transformer_lens.loading_from_pretrained import MODEL_ALIASES  # pyright: ignore[reportPrivateImportUsage]

    name = short_name(model_name)
    if name is None:
        return None
    official = next((known for known, aliases in MODEL_ALIASES.items() if name in aliases), name)
    official = _MOVED.get(official, official)
    return official if official.count("/") == 1 else None


def dataset_id(dataset_path: Any) -> str | None:
    """Return the Hub's id of a dataset; None for a local one."""
    name = short_name(dataset_path)
    return name if name == dataset_path and name is not None and name.count("/") == 1 and " " not in name else None


def write_card(existing: str | None, repo_id: str, saes: Mapping[str, SAEFacts], options: CardOptions) -> str:
    """Return the card of a repository with these SAEs.

    Args:
        existing: The card that is there, if any; its own text and fields stay.
        repo_id: "owner/name".
        saes: All SAEs of the repository by id.
        options: Fields that the pusher gives.

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
    text = _with_section(card.text.strip("\n"), card_section(repo_id, saes))
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
    names = {_metric_name(metric.heading, sae_id) for sae_id in saes for metric in metrics_shown_in(CARD)}
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
            metric_type=metric.name,
            metric_name=_metric_name(metric.heading, sae_id),
            metric_value=value,
        )
        for metric, value in facts.measured()
    ]


def _metric_name(heading: str, sae_id: str) -> str:
    # huggingface_hub merges results of one task and dataset: the id keeps the SAEs apart.
    return f"{heading} ({sae_id})"


def _with_section(text: str, section: str) -> str:
    """Return the text with `section` between the markers, at its end where it has none."""
    section = f"{BEGIN}\n\n{section}\n\n{END}"
    start, end = text.find(BEGIN), text.find(END)
    if 0 <= start < end:
        return text[:start] + section + text[end + len(END) :]
    return f"{text}\n\n{section}" if text else section


def _merged(old: str | Sequence[str] | None, new: Iterable[str | None]) -> list[str]:
    own = [old] if isinstance(old, str) else list(old or ())
    return list(dict.fromkeys([*own, *(name for name in new if name)]))


def _one_or_many(names: str | Sequence[str]) -> Any:
    if isinstance(names, str):
        return names
    return names[0] if len(names) == 1 else list(names) or None
