"""Concepts of the bundled text, and the latents that detect them."""

from __future__ import annotations

import torch

from sae_lens_afa.demo import load_model
from sae_lens_afa.experiments.concepts import CONCEPTS, concept_f1, concept_labels

PIECES = ["\n", "And", " she", " s", "aid", ",", " Wh", "at", " seek", "eth", " thou", "?", " The", " king", "dom"]


def labels_of(prompts):
    labels = concept_labels(torch.tensor(prompts), lambda ids: "".join(PIECES[i] for i in ids))
    return dict(zip(CONCEPTS, labels, strict=True))


def literal_f1(labels, fired):
    pairs = list(zip(labels.tolist(), fired.tolist(), strict=True))
    hits, missed, false = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    return 2 * hits / (2 * hits + missed + false)


def test_tokens_that_a_concept_covers_are_labelled_also_where_it_is_several():
    found = labels_of([list(range(len(PIECES)))])
    marked = {name: [PIECES[i] for i in labels.nonzero()[:, 0]] for name, labels in found.items() if labels.any()}
    assert marked == {
        "thou and ye": [" thou"],
        "she": [" she"],
        "saying": [" s", "aid"],
        "ruler": [" king", "dom"],
        "start of a verse": ["And"],
        "question": ["?"],
        "verb in -eth": [" seek", "eth"],
    }


def test_a_match_does_not_go_over_the_end_of_a_prompt():
    found = labels_of([[0, 1, 3], [4, 5, 2]])
    assert not found["saying"].any()
    assert found["she"].tolist() == [False] * 5 + [True]


class Codes:
    """An SAE whose code is its input."""

    device = "cpu"

    def encode(self, x):
        return x


def test_the_best_latent_is_judged_on_tokens_that_it_was_not_chosen_on():
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(len(CONCEPTS), 4000, generator=generator) < 0.1
    labels[3, 100:] = False  # about five of each half: too few to say something
    acts = torch.rand(4000, 50, generator=generator) * (torch.rand(4000, 50, generator=generator) < 0.1)
    acts[:, 7] = labels[0] * 2.0  # a perfect detector
    acts[:, 8] = labels[1] * 2.0 + 0.2 * torch.rand(4000, generator=generator)  # a perfect one above a level
    acts[1::2, 9], acts[::2, 9] = 0.0, labels[2, ::2] * 1.0  # one that is there for half of the tokens only
    found = concept_f1(Codes(), acts, labels)
    names = list(CONCEPTS)
    assert found[names[0]] == found[names[1]] == 1.0
    assert found[names[2]] == 0.0
    assert names[3] not in found
    # Chance: the level that is best on one half says nothing about the other.
    assert all(found[name] < 0.25 for name in names[4:])


def test_f1_is_the_mean_of_precision_and_recall_harmonically():
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(len(CONCEPTS), 2000, generator=generator) < 0.3
    acts = (torch.rand(2000, 1, generator=generator) - 0.5).relu()
    found = concept_f1(Codes(), acts, labels)
    levels = [share * acts[::2].max() for share in (0.0, 0.125, 0.25, 0.5)]
    for c, name in enumerate(CONCEPTS):
        scores = [literal_f1(labels[c, ::2], acts[::2, 0] > level) for level in levels]
        level = levels[max(range(4), key=scores.__getitem__)]
        assert abs(found[name] - literal_f1(labels[c, 1::2], acts[1::2, 0] > level)) < 1e-6


def test_the_bundled_model_s_tokens_are_put_together_piece_by_piece():
    tokenizer = load_model("cpu").tokenizer
    ids = tokenizer("And God said, Let there be light: and there was light.")["input_ids"]
    assert "".join(tokenizer.decode([i]) for i in ids) == tokenizer.decode(ids)
