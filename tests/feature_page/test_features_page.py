"""The page as a file, and the public function that writes it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from page_helpers import CONTEXT, small_topk
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

import sae_lens_afa as afa
from sae_lens_afa.feature_page import features_by_name
from sae_lens_afa.feature_page.packed import packed
from sae_lens_afa.feature_page.vocabulary import Vocabulary

EVIL = "<script>document.title = 'seized'</script> <img src=x onerror=\"document.title = 'seized'\">"
# Refused: there is no relation between their features and what they read.
OTHERS = {"transcoder", "skip_transcoder", "jumprelu_skip_transcoder", "jumprelu_transcoder", "temporal"}


def unpacked(data: str) -> tuple[dict, dict]:
    """What the page's script makes of its data."""
    whole = gzip.decompress(base64.b64decode(data))
    length = int.from_bytes(whole[:8], "little")
    about = json.loads(whole[8 : 8 + length])
    kinds = {"Uint8Array": "u1", "Uint16Array": "<u2", "Uint32Array": "<u4", "Int32Array": "<i4", "Float32Array": "<f4"}
    arrays = {}
    for name, place in about["arrays"].items():
        count, start = int(np.prod(place["shape"])), 8 + length + place["offset"]
        arrays[name] = np.frombuffer(whole, kinds[place["type"]], count, start).reshape(place["shape"])
    return about, arrays


def content_of(page) -> tuple[dict, dict]:
    return unpacked(re.search(r'id="data">([^<]*)</script>', page.read_text(encoding="utf-8"))[1])


def write(sae, store, model, folder, **options):
    return afa.features(sae, store(sae), model, folder, **{"tokens": 24 * CONTEXT, "progress": False, **options})


def test_arrays_come_out_as_they_went_in():
    arrays = {
        "bytes": np.arange(5, dtype=np.uint8), "table": np.random.rand(3, 4).astype(np.float32),
        "numbers": np.array([[2**32 - 1]], dtype=np.uint32), "none": np.empty((0, 3), np.uint16),
    }  # fmt: skip
    about, found = unpacked(packed({"title": EVIL}, arrays))
    assert about["title"] == EVIL
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)


def test_the_page_holds_the_table_and_the_contexts(tmp_path, model, store):
    sae = small_topk()
    report = write(sae, store, model, tmp_path / "page")
    assert [path.name for path in report.files] == ["features.html", "latents.csv"]
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["features.html", "latents.csv"]
    about, arrays = content_of(report.page)
    assert (about["d_sae"], about["n_tokens"], about["hook"]) == (48, 24 * CONTEXT, "blocks.2.hook_resid_pre")
    table = report.table
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "page/latents.csv", keep_default_na=False), table)
    assert table["energy_share"].sum() == pytest.approx(1)
    assert table["density"].sum() == pytest.approx(5)  # k
    assert bool((table["is_dead"] == (table["density"] == 0)).all())
    assert bool(table["is_dead"].any())
    # A latent's strongest token, by its place in the text that the page holds.
    latent = int(table["density"].idxmax())
    text = arrays["text"].ravel()
    assert about["texts"][text[arrays["strongest"][latent, 0]]] == table["token"][latent]
    assert arrays["strongest_shade"].shape == (48, 10, 25)
    assert arrays["strongest_shade"][latent, 0, 16] == 255
    assert f"{int((~table['is_dead']).sum()):,}; on none" in str(report)


def test_a_place_of_the_text_is_its_token(tmp_path, model, store):
    """The page's contexts, read as its script reads them, are pieces of the text."""
    sae = small_topk()
    about, arrays = content_of(write(sae, store, model, tmp_path / "page").page)
    prompts = store(sae).get_batch_tokens(24)
    whole = {tuple(row) for row in prompts.tolist()}
    names = {name: i for i, name in enumerate(about["texts"])}
    shown = [tuple(names[model.tokenizer.decode([token])] for token in row) for row in whole]
    assert {tuple(row) for row in arrays["text"].tolist()} <= set(shown)


def test_only_what_is_shown_of_a_long_text_is_in_the_page(tmp_path, model, store):
    sae = small_topk(d_sae=8)
    sae.cfg.k = 1
    _, arrays = content_of(write(sae, store, model, tmp_path / "page", tokens=400 * CONTEXT).page)
    assert 0 < len(arrays["text"]) < 400
    places = arrays["strongest"][arrays["strongest"] != 2**32 - 1]
    assert places.max() < arrays["text"].size


def test_tokens_are_taken_apart_by_stage_where_an_sae_pursues(tmp_path, model, store):
    torch.manual_seed(0)
    about = SAEMetadata(hook_name="blocks.2.hook_resid_pre", context_size=CONTEXT, prepend_bos=True)
    sae = afa.AFAPursuitSAE(afa.AFAPursuitSAEConfig(d_in=192, d_sae=64, threshold_scale=0.5, metadata=about))
    _, arrays = content_of(write(sae, store, model, tmp_path / "page").page)
    listed = arrays["token_latent"] != 2**32 - 1
    assert bool((arrays["token_stage"][listed] >= 1).all())
    assert int(arrays["token_stage"].max()) > 1
    assert bool((arrays["token_stage"][~listed] == 0).all())
    assert np.allclose(
        arrays["token_share"].sum(1)[(arrays["token_l0"] > 0) & (arrays["token_l0"] <= 24)], 1, atol=1e-5
    )


def test_norms_of_a_token_are_those_of_the_evaluation(tmp_path, model, store):
    sae = small_topk()
    _, arrays = content_of(write(sae, store, model, tmp_path / "page").page)
    tokens = afa.run_afa_evals(sae, store(sae), model, tokens=24 * CONTEXT, progress=False).tokens
    assert np.allclose(arrays["token_norm_ratio"], tokens["norm_ratio"], rtol=1e-4)
    assert np.array_equal(arrays["token_l0"], tokens["l0"])


def test_text_of_a_model_cannot_end_its_script(tmp_path, model, store):
    text = Dataset.from_dict({"text": [EVIL * 20] * 20})
    sae = small_topk()
    report = afa.features(sae, store(sae, text), model, tmp_path / "page", tokens=256, name=EVIL, progress=False)
    page = report.page.read_text(encoding="utf-8")
    assert "seized" not in page.replace("&#39;seized&#39;", "")
    assert "&lt;script&gt;document.title" in page


def test_blanks_that_a_tokenizer_drops_are_put_back():
    class Sentencepiece:
        pieces = ("▁the", "the", "▁")

        def decode(self, ids):
            return self.pieces[ids[0]].removeprefix("▁")

        def convert_ids_to_tokens(self, token_id):
            return self.pieces[token_id]

    assert Vocabulary(Sentencepiece(), np.array([0, 1, 2])).texts == [" the", "the", " "]
    assert Vocabulary(None, np.array([[7, 9]])).texts == ["#7", "#9"]


@pytest.mark.parametrize(
    ("hook_name", "d_in", "options"),
    [
        ("blocks.1.attn.hook_z", 192, {}),
        ("blocks.1.attn.hook_z", 48, {"hook_head_index": 2}),
        ("blocks.0.hook_mlp_out", 192, {}),
        ("blocks.0.mlp.hook_post", 768, {}),
        ("blocks.1.attn.hook_q", 48, {"hook_head_index": 0}),
    ],
)
def test_at_any_hook(tmp_path, model, store, hook_name, d_in, options):
    d_in = model.cfg.d_head if "hook_head_index" in options else d_in
    report = write(small_topk(hook_name, d_in=d_in, **options), store, model, tmp_path / "page")
    _, arrays = content_of(report.page)
    assert ("promoted" in arrays) == (not hook_name.endswith("_q"))


@pytest.mark.parametrize("name", sorted(SAE_CLASS_REGISTRY.keys() - OTHERS))
def test_any_sae_of_saelens(tmp_path, model, store, name):
    torch.manual_seed(0)
    sae_class, config_class = SAE_CLASS_REGISTRY[name]
    about = SAEMetadata(hook_name="blocks.1.hook_resid_pre", context_size=CONTEXT, prepend_bos=True)
    options = {"k": 5} if "k" in config_class.__dataclass_fields__ else {}
    sae = sae_class(config_class(d_in=192, d_sae=40, metadata=about, **options))
    report = write(sae, store, model, tmp_path / "page", tokens=64)
    _, arrays = content_of(report.page)
    assert len(report.table) == 40
    assert report.table["density"].sum() == pytest.approx(arrays["token_l0"].mean())


def test_activations_below_zero_count_by_their_size(tmp_path, model, store):
    torch.manual_seed(0)
    sae_class, config_class = SAE_CLASS_REGISTRY["abstopk"]
    sae = sae_class(config_class(d_in=192, d_sae=40, k=5, metadata=small_topk().cfg.metadata))
    report = write(sae, store, model, tmp_path / "page")
    _, arrays = content_of(report.page)
    assert float(arrays["strongest_value"].min()) < 0
    assert np.allclose(np.abs(arrays["strongest_value"][:, 0]), report.table["max"], rtol=1e-5)
    sizes = np.abs(arrays["sampled_value"])
    assert bool((np.diff(sizes, axis=1) <= 0).all())


def test_a_transcoder_is_refused(tmp_path, model, store):
    sae_class, config_class = SAE_CLASS_REGISTRY["transcoder"]
    options = {"apply_b_dec_to_input": False, "d_out": 192, "metadata": small_topk().cfg.metadata}
    with pytest.raises(TypeError, match="transcoder"):
        write(sae_class(config_class(d_in=192, d_sae=40, **options)), store, model, tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_any_dtype(tmp_path, model, store, dtype):
    report = write(small_topk().to(dtype), store, model, tmp_path / "page", tokens=64)
    assert report.table["density"].sum() == pytest.approx(5)


def test_refusals_come_before_the_text_is_read(tmp_path, model, store):
    sae = small_topk()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(sae, store, model, tmp_path / "there")
    write(sae, store, model, tmp_path / "there", overwrite=True, tokens=32)
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        write(sae, store, model, tmp_path / "page", tokens=0)
    sae.cfg.metadata.hook_name = "blocks.9.hook_resid_pre"
    with pytest.raises(ValueError, match="hook_name"):
        write(sae, store, model, tmp_path / "page")
    with pytest.raises(ValueError, match="the SAE does not say its model_name: give model"):
        features_by_name(small_topk(), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_a_single_latent_has_no_neighbours(tmp_path, model, store):
    sae = afa.AFAPursuitSAE(afa.AFAPursuitSAEConfig(d_in=192, d_sae=2, metadata=small_topk().cfg.metadata))
    report = write(sae, store, model, tmp_path / "page", tokens=64)
    assert len(report.table) == 2


def test_on_a_transformer_bridge(tmp_path, model, store, dataset):
    """TransformerLens' newer model says the same of an SAE as its older one, promoted tokens among it."""
    pytest.importorskip("transformer_lens.model_bridge", reason="came with TransformerLens 3")
    from sae_lens import ActivationsStore
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    from sae_lens_afa.demo import model_folder

    sae, of_its_own = small_topk(), small_topk("blocks.2.hook_in")  # its name of the same point
    bridge = SAETransformerBridge.boot_transformers(str(model_folder()), device="cpu", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_bridge = ActivationsStore.from_sae(bridge, of_its_own, dataset, streaming=False, store_batch_size_prompts=4)
    reports = [
        write(sae, store, model, tmp_path / "hooked"),
        afa.features(of_its_own, of_bridge, bridge, tmp_path / "bridge", tokens=24 * CONTEXT, progress=False),
    ]
    hooked, bridged = (content_of(report.page) for report in reports)
    assert np.allclose(reports[0].table["density"], reports[1].table["density"], atol=2 / (24 * CONTEXT))
    assert np.allclose(hooked[1]["promoted_logit"], bridged[1]["promoted_logit"], atol=1e-3)
