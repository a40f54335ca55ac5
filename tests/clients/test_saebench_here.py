"""What our functions for SAEBench check before SAEBench is asked, and what they say where it is not installed."""

from __future__ import annotations

import sys

import jaxtyping
import pytest

import sae_lens_afa as afa
from sae_lens_afa.interop import saebench_core, saebench_sparse_probing
from sae_lens_afa.interop._bench import prepared, shapes_unchecked


@pytest.fixture
def sae():
    return afa.TopAFATrainingSAE(afa.TopAFATrainingSAEConfig(d_in=192, d_sae=64))


def test_without_saebench_the_message_says_how_to_install_it(sae, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_bench", None)
    texts = {"old": ["a"] * 10, "new": ["b"] * 10}
    for call in (lambda: saebench_core(sae, tmp_path), lambda: saebench_sparse_probing(sae, texts, tmp_path)):
        with pytest.raises(ImportError, match="pip install sae-bench"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("texts", [{}, {"one": ["a"] * 10}, {"one": ["a"] * 10, "two": ["a"] * 9}])
def test_too_few_texts_are_refused(sae, tmp_path, texts):
    with pytest.raises(ValueError, match="two classes or more, each of 10 texts or more"):
        saebench_sparse_probing(sae, texts, tmp_path)


def test_saebench_gets_a_copy_in_inference_form_with_decoder_rows_at_norm_1(sae):
    sae.W_dec.data *= 3.0
    name, copied = prepared(sae, None, "cpu")
    assert name == "top_afa"
    assert isinstance(copied, afa.TopAFASAE)
    assert (copied.W_dec.norm(dim=1) - 1).abs().max() < 1e-5
    assert sae.W_dec.norm(dim=1).min() > 2


def test_shape_checks_come_back():
    assert not jaxtyping.config.jaxtyping_disable
    with shapes_unchecked():
        assert jaxtyping.config.jaxtyping_disable
    assert not jaxtyping.config.jaxtyping_disable
