"""Do single latents stand for what a reader sees? Twenty concepts of the bundled text, and the best F1 of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.sae import SAE
from torch import Tensor

_WORDS = {
    "negation": "not no nor neither never none cannot nothing",
    "number": "one two three four five six seven eight nine ten twelve twenty thirty forty fifty hundred thousand first"
    " second third",
    "God": "God LORD Lord Jesus Christ Ghost Almighty",
    "person": "Moses Aaron David Saul Abraham Isaac Jacob Joseph Solomon Samuel Joshua Esau Noah Jonathan Elijah Elisha"
    " Peter Paul John Mary Absalom Joab Sarah Rachel Leah Laban Lot",
    "place": "Egypt Jerusalem Babylon Zion Judah Israel Canaan Jordan Syria Moab Galilee Samaria Bethel Gilead Edom",
    "ruler": "king kings kingdom prince princes ruler rulers Pharaoh throne reign reigned queen",
    "kin": "father fathers mother son sons daughter daughters brother brethren sister wife wives husband children",
    "body": "hand hands eyes eye mouth heart face head feet foot ear ears blood flesh bones lips tongue",
    "I and we": "I me my mine we us our ours",
    "thou and ye": "thou thee thy thine ye you your thyself",
    "she": "she her hers herself",
    "saying": "said saying saith spake answered speak spoken told say speaketh",
    "animal": "sheep lamb lambs ox oxen horse horses ass asses goat goats lion lions beast beasts cattle bullock ram"
    " rams",
    "time": "day days night morning evening year years month hour sabbath",
    "war": "sword battle smote slew slay slain war army fight fought enemy enemies",
    "worship": "offering offerings sacrifice altar priest priests temple tabernacle incense burnt",
    "motion": "go went came come come depart departed return returned arose rose",
}
# A concept by what a match of its pattern covers in the text.
CONCEPTS: Mapping[str, str] = {
    **{name: rf"\b(?:{'|'.join(words.split())})\b" for name, words in _WORDS.items()},
    "start of a verse": r"(?m)^[ ]*\w+",
    "question": r"\?",
    "verb in -eth": r"\b\w{2,}eth\b",
}
# Fewer tokens of a concept than this say little about it.
_LEAST = 20
# Levels, as parts of a latent's largest activation, above which it may be taken as firing.
_LEVELS = (0.0, 0.125, 0.25, 0.5)
_BATCH = 4096


def concept_labels(
    prompts: Int[Tensor, "prompts context"], decode: Callable[[Sequence[int]], str]
) -> Bool[Tensor, "concepts tokens"]:
    """Return for each of `CONCEPTS` which tokens, all prompts in one row, lie in a match of its pattern.

    Args:
        prompts: Tokens.
        decode: Returns the text of tokens; that of several is that of each put together.
    """
    labels = torch.zeros(len(CONCEPTS), *prompts.shape, dtype=torch.bool)
    for p, prompt in enumerate(prompts.tolist()):
        pieces = [decode([token]) for token in prompt]
        text = "".join(pieces)
        of_character = [i for i, piece in enumerate(pieces) for _ in piece]
        for c, pattern in enumerate(CONCEPTS.values()):
            for match in re.finditer(pattern, text):
                labels[c, p, sorted(set(of_character[match.start() : match.end()]))] = True
    return labels.flatten(1)


@torch.no_grad()
def concept_f1(
    sae: SAE[Any], activations: Float[Tensor, "tokens d_in"], labels: Bool[Tensor, "concepts tokens"]
) -> dict[str, float]:
    """Return for each concept the F1 of the latent that is its best detector.

    Latent and level are chosen on every other token and judged on those between. Concepts of too few tokens in either
    half are left out.

    Args:
        sae: The SAE.
        activations: What it encodes.
        labels: Of `concept_labels`, for the same tokens.
    """
    acts = torch.cat([_dense(sae.encode(rows.to(sae.device))).cpu() for rows in activations.split(_BATCH)])
    choose, judge = ((labels[:, start::2].float(), acts[start::2]) for start in (0, 1))
    levels = choose[1].amax(0) * torch.tensor(_LEVELS)[:, None]
    scores = torch.stack([_f1(*choose, level) for level in levels])  # [levels, concepts, d_sae]
    best = scores.permute(1, 0, 2).flatten(1).argmax(1)
    found: dict[str, float] = {}
    for c, name in enumerate(CONCEPTS):
        if min(choose[0][c].sum(), judge[0][c].sum()) < _LEAST:
            continue
        level, latent = divmod(int(best[c]), acts.shape[1])
        found[name] = float(_f1(judge[0][c, None], judge[1][:, latent, None], levels[level, latent, None]))
    return found


def _f1(
    labels: Float[Tensor, "concepts tokens"], acts: Float[Tensor, "tokens d_sae"], level: Float[Tensor, " d_sae"]
) -> Float[Tensor, "concepts d_sae"]:
    """Return F1 = 2 TP / (positives + fired) of each latent, firing above its level, for each concept."""
    fired = (acts > level).float()
    return 2 * (labels @ fired) / (labels.sum(1, keepdim=True) + fired.sum(0)).clamp_min(1)


def _dense(acts: Tensor) -> Tensor:
    return acts.to_dense() if acts.is_sparse else acts
