"""Tokens with NaN or infinities: visible in their own code, and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import afa_threshold_helpers
import choice_helpers
import pytest
import small_saes
import top_afa_helpers
import torch
from choice_helpers import VARIANTS
from sae_lens import SAE
from small_saes import D_IN, KINDS, TRAINING
from torch import Tensor

BAD = 3
ALL = pytest.mark.parametrize("kind", [*KINDS, "saved mutual_choice"])
CHOICES = pytest.mark.parametrize("variant", VARIANTS)


def build(kind: str, folder: Any, **overrides: Any) -> Any:
    sae = small_saes.build(kind.removeprefix("saved "), **{"normalize_activations": "none", **overrides})
    if not kind.startswith("saved"):
        return sae
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


def with_bad_token(x: Tensor, value: float, *, whole: bool = False) -> Tensor:
    x = x.clone()
    x[BAD, slice(None) if whole else 5] = value
    return x


def others(t: Tensor) -> Tensor:
    return torch.cat([t[:BAD], t[BAD + 1 :]])


@ALL
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_bad_token_is_visible_and_changes_no_other(tmp_path, monkeypatch, kind, normalize, dtype):
    sae = build(kind, tmp_path, dtype=dtype, normalize_activations=normalize)
    x = torch.randn(8, D_IN).to(sae.dtype)
    for backend in ("auto", "torch"):
        monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
        for mode in (True, False) if kind in TRAINING else (False,):
            sae.train(mode)
            # In training mode Mutual and Feature Choice share out a batch: that of the other tokens.
            clean = sae.encode(others(x)) if mode else others(sae.encode(x))
            for value in (math.nan, math.inf, -math.inf):
                for whole in (False, True):
                    acts = sae.encode(with_bad_token(x, value, whole=whole))
                    assert not acts[BAD].isfinite().all()
                    if kind == "feature_choice" and mode:  # which takes turns, by the size of the batch
                        assert others(acts).isfinite().all()
                    else:
                        torch.testing.assert_close(others(acts), clean)


@CHOICES
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_token_uses_up_no_match_and_leaves_what_is_tracked_alone(variant, value):
    sae = choice_helpers.build(variant)
    densities = []
    for at in range(6):
        x = torch.randn(40, D_IN)
        out = choice_helpers.step(sae, with_bad_token(x, value), at)
        matched = int((others(out.feature_acts) > 0).sum())
        assert int(out.metrics["unused_matches"]) + matched == 4 * 39
        densities.append(matched / 39)
    assert float(sae.density.sum()) == pytest.approx(sum(densities) / 6)
    assert sae.threshold.isfinite().all()
    assert 0 < choice_helpers.l0(sae.eval().encode(torch.randn(4000, D_IN))) < 8


def test_mutual_choice_tracks_what_it_does_without_the_token():
    x = torch.randn(40, D_IN)
    sae = choice_helpers.build("mutual_choice")
    before = {name: buffer.clone() for name, buffer in sae.named_buffers()}
    found = []
    for batch in (with_bad_token(x, math.inf), others(x)):
        for name, value in before.items():
            sae.get_buffer(name).copy_(value)
        sae.drop_caches()
        choice_helpers.step(sae, batch)
        found.append({name: buffer.clone() for name, buffer in sae.named_buffers()})
    torch.testing.assert_close(found[0], found[1], equal_nan=True)


@CHOICES
def test_a_batch_of_nothing_else_is_not_tracked(variant):
    sae = choice_helpers.build(variant)
    choice_helpers.train(sae, [torch.randn(40, D_IN) for _ in range(4)])
    before = {name: buffer.clone() for name, buffer in sae.named_buffers()}
    out = choice_helpers.step(sae, torch.full((40, D_IN), math.nan), 4)
    assert out.metrics["unused_matches"] == 0
    for name, buffer in sae.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("helpers", [top_afa_helpers, afa_threshold_helpers], ids=["top_afa", "afa_threshold"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_leave_bad_tokens_out_and_count_them(helpers, value):
    sae = helpers.build(normalize_activations="none")
    x = torch.randn(9, sae.cfg.d_in)
    clean = helpers.step(sae, others(x), logging=True).metrics
    found = helpers.step(sae, with_bad_token(x, value), logging=True).metrics
    assert found.pop("n_nonfinite") == 1
    assert clean.pop("n_nonfinite") == 0
    for name, expected in clean.items():
        assert float(found[name]) == pytest.approx(float(expected), rel=1e-5), name


def test_the_bias_starts_as_the_mean_of_finite_tokens():
    sae = afa_threshold_helpers.build()
    sae.b_dec.data.zero_()
    x = torch.randn(9, sae.cfg.d_in)
    afa_threshold_helpers.step(sae, with_bad_token(x, math.nan), n=0)
    torch.testing.assert_close(sae.b_dec.detach(), others(x).mean(0))
