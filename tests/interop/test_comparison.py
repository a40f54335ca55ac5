"""A stand-in and its original where numbers overflow, tensors have graphs, and SAEs are attached."""

from __future__ import annotations

import json

import pytest
import torch
from sae_lens import ActivationsStore
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_afa import TopAFASAE, TopAFASAEConfig, export_jumprelu
from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.interop._comparison import compare
from sae_lens_afa.interop.agreement import METADATA_KEY, jumprelu_report

D_IN, D_SAE = 8, 24


def pair() -> tuple[TopAFASAE, JumpReLUSAE]:
    original = TopAFASAE(TopAFASAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="none"))
    export = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE))
    export.load_state_dict(
        {**original.state_dict(), "b_enc": torch.zeros(D_SAE), "threshold": torch.full((D_SAE,), 0.3)}
    )
    return original, export


def test_tokens_that_become_nan_are_counted_apart():
    original, export = pair()
    x = torch.randn(50, D_IN)
    clean = compare(original, export, [x[2:]])
    damaged = torch.cat([torch.tensor([[torch.nan] * D_IN, [torch.inf] * D_IN]), x[2:]])
    found = compare(original, export, [damaged[:9], damaged[9:]])
    assert (found["n_evaluation_tokens"], found["n_nonfinite"]) == (48, 2)
    assert found == pytest.approx({**clean, "n_nonfinite": 2})


def test_nothing_but_nan_is_one_error():
    with pytest.raises(ValueError, match="no tokens to judge: of all 3 the SAEs make a NaN or an infinity"):
        compare(*pair(), [torch.full((3, D_IN), torch.nan)])


def test_a_report_says_how_many_and_one_of_an_earlier_version_is_read():
    export = export_jumprelu(pair()[0], torch.randn(100, D_IN))
    data = export.cfg.metadata[METADATA_KEY]
    assert data["n_nonfinite"] == 0
    assert "NaN" not in str(jumprelu_report(export))
    export.cfg.metadata[METADATA_KEY] = json.loads(json.dumps({**data, "n_nonfinite": 4}))
    assert "tokens with NaN or infinity, left out: 4" in str(jumprelu_report(export))
    del export.cfg.metadata[METADATA_KEY]["n_nonfinite"]
    assert jumprelu_report(export).n_nonfinite == 0


@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_activations_that_require_grad_calibrate_alike(normalization):
    original = TopAFASAE(TopAFASAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations=normalization))
    x = torch.randn(700, D_IN)
    plain = export_jumprelu(original, x)
    for with_grad in (x.clone().requires_grad_(), x.clone().requires_grad_() * 1):
        export = export_jumprelu(original, with_grad)
        assert torch.equal(export.threshold, plain.threshold)
        assert jumprelu_report(export) == jumprelu_report(plain)


def test_sae_and_stand_in_on_a_model_to_which_an_sae_is_attached(model, dataset):
    hook = "blocks.2.hook_resid_pre"
    about = SAEMetadata(hook_name=hook, context_size=32, prepend_bos=True)
    original = TopAFASAE(TopAFASAEConfig(d_in=192, d_sae=384, metadata=about))
    x = model.run_with_cache(torch.arange(32 * 4).view(4, 32))[1][hook]

    def report():
        with expected_messages_off():
            store = ActivationsStore.from_sae(model, original, dataset, streaming=False, store_batch_size_prompts=4)
        options = {"model": model, "activation_store": store, "cross_entropy_tokens": 128}
        return jumprelu_report(export_jumprelu(original, x, **options))

    expected = report()
    model.add_sae(original)
    try:
        assert report() == expected
        assert model.acts_to_saes == {hook: original}
    finally:
        model.reset_saes()
