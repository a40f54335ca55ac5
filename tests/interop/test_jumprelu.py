"""JumpReLU exports: what they keep, how they are judged, who can load them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_helpers import D_IN, D_SAE, build, tokens
from sae_lens import SAE, ActivationsStore
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

from sae_lens_afa import TopAFATrainingSAE, TopAFATrainingSAEConfig
from sae_lens_afa._support import expected_messages_off
from sae_lens_afa.demo import load_text
from sae_lens_afa.interop import export_jumprelu, jumprelu_report
from sae_lens_afa.interop._split import MAX_HELD_OUT
from sae_lens_afa.loading.text import text_dataset

HELD_OUT = 4  # of every five blocks of 128 tokens, counted from 0


def held_out(rows: torch.Tensor) -> torch.Tensor:
    return rows[torch.arange(len(rows)) // 128 % 5 == HELD_OUT]


def calibration(rows: torch.Tensor) -> torch.Tensor:
    return rows[torch.arange(len(rows)) // 128 % 5 != HELD_OUT]


# ---- what an export is


def test_weights_settings_and_metadata_are_the_original_s():
    sae = build()
    export = export_jumprelu(sae, tokens())
    assert isinstance(export, JumpReLUSAE)
    for name in ("W_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(export, name), getattr(sae, name))
    assert not export.b_enc.any()
    assert export.cfg.normalize_activations == "layer_norm"
    assert export.cfg.apply_b_dec_to_input
    assert {"model_name": "kjv", "context_size": 32}.items() <= export.cfg.metadata.to_dict().items()
    assert "jumprelu_export" not in sae.cfg.metadata


def test_an_export_shares_nothing_with_the_original():
    sae = build()
    export = export_jumprelu(sae, tokens())
    before = {name: tensor.clone() for name, tensor in export.state_dict().items()}
    for parameter in sae.parameters():
        parameter.data.zero_()
    sae.cfg.metadata["model_name"] = "other"
    assert all(torch.equal(tensor, before[name]) for name, tensor in export.state_dict().items())
    assert export.cfg.metadata.model_name == "kjv"
    assert all(parameter.requires_grad for parameter in export.parameters())


@pytest.mark.slow
def test_it_loads_without_this_package_with_the_same_outputs(tmp_path):
    export, x = export_jumprelu(build(), tokens()), tokens(50, seed=1)
    export.save_model(tmp_path)
    torch.save((x, export.encode(x), export(x)), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from sae_lens import SAE\n"
        "sae = SAE.load_from_disk(sys.argv[1])\n"
        "x, acts, out = torch.load(sys.argv[1] + '/expected.pt')\n"
        "assert 'sae_lens_afa' not in sys.modules\n"
        "assert torch.equal(sae.encode(x), acts) and torch.equal(sae(x), out)\n"
        "print(sae.cfg.architecture(), sae.cfg.metadata.jumprelu_export['jaccard'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["jumprelu", str(jumprelu_report(export).jaccard)]


def test_the_report_survives_saving_and_is_plain_json(tmp_path):
    export = export_jumprelu(build(), tokens())
    export.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert jumprelu_report(loaded) == jumprelu_report(export)
    stored = loaded.cfg.metadata.jumprelu_export
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored == jumprelu_report(export).to_dict()
    assert "An approximation" in stored["note"]
    assert f"{stored['jaccard']:.1%}" in stored["note"]


def test_a_training_sae_is_exported_as_it_is_saved():
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    sae.load_state_dict(build().state_dict())
    expected, found = export_jumprelu(build(), tokens()), export_jumprelu(sae, tokens())
    assert torch.equal(found.threshold, expected.threshold)
    assert jumprelu_report(found) == jumprelu_report(expected)
    assert found.cfg.metadata.training_architecture == "top_afa"


# ---- exactness


def test_an_original_that_is_a_threshold_is_reproduced_exactly():
    # One large feature a token, encoded above the norm of x: the rule keeps it alone, whatever the small ones.
    sae = build(normalize_activations="none", d_in=D_SAE)
    sae.W_dec.data = torch.eye(D_SAE)
    sae.W_enc.data = 1.2 * torch.eye(D_SAE)
    sae.b_dec.data.zero_()
    x = 0.1 * torch.rand(8000, D_SAE)
    x[torch.arange(8000), torch.arange(8000) % D_SAE] = 5 + 3 * torch.rand(8000)
    export = export_jumprelu(sae, x)
    assert (export.threshold > 0.1).all()
    assert torch.equal(export.encode(x), sae.encode(x))
    report = jumprelu_report(export)
    assert (report.jaccard, report.precision, report.recall) == (1, 1, 1)
    assert report.l0_export == report.l0_original == 1


def test_an_original_that_keeps_every_positive_feature_is_a_relu():
    sae = build()
    sae.W_enc.data *= 1e-3  # the norm of all is far below the norm of x
    export = export_jumprelu(sae, tokens())
    assert (export.threshold == 0).all()
    assert torch.equal(export.encode(tokens()), sae.encode(tokens()))


def test_each_threshold_has_the_fewest_disagreements():
    sae, x = build(), tokens()
    export = export_jumprelu(sae, x)
    rows = calibration(x)
    pre = (sae.run_time_activation_norm_fn_in(rows) - sae.b_dec) @ sae.W_enc
    selected = sae.encode(rows) > 0
    found = ((pre > export.threshold) != selected).sum(0)
    # Every twentieth pre-activation of each feature as its threshold.
    for value in [torch.zeros(D_SAE), *pre[::20]]:
        other = ((pre > value.clamp(min=0)) != selected).sum(0)
        assert (found <= other + 6).all()  # the bins' width
    assert found.sum() < 0.6 * ((pre > 0) != selected).sum()


# ---- shapes, streams, dtypes


def test_a_stream_gives_what_the_tensor_gives():
    # Multiples of powers of two, of which float32 matmuls are exact: those of other shapes round differently.
    sae, x = build(normalize_activations="none"), (4 * tokens()).round() / 4
    for weight in (sae.W_enc, sae.W_dec, sae.b_dec):
        weight.data = (16 * weight.data).round() / 16
    whole = export_jumprelu(sae, x)
    for batches in (x.split(7), iter(x.split(1500)), (part for part in x.split(333)), [x.reshape(20, 100, D_IN)]):
        streamed = export_jumprelu(sae, batches)
        assert torch.equal(streamed.threshold, whole.threshold)
        assert jumprelu_report(streamed).l0_export == pytest.approx(jumprelu_report(whole).l0_export)
    small = export_jumprelu(sae, x, batch_size=64)
    assert torch.equal(small.threshold, whole.threshold)
    assert jumprelu_report(small).l0_export == pytest.approx(jumprelu_report(whole).l0_export)


def test_heads_are_joined_and_the_export_takes_heads(tmp_path):
    metadata = SAEMetadata(hook_name="blocks.1.attn.hook_z")
    sae, flat = build(reshape_activations="hook_z", metadata=metadata), build()
    x = tokens()
    export = export_jumprelu(sae, x.reshape(-1, 4, 4))
    assert torch.equal(export.threshold, export_jumprelu(flat, x).threshold)
    export.save_model(tmp_path)
    for each in (export, SAE.load_from_disk(tmp_path)):
        out = each(x.reshape(10, 200, 4, 4))
        assert out.shape == (10, 200, 4, 4)
    assert sae.hook_z_reshaping_mode  # the original is as it was
    assert sae(x.reshape(-1, 4, 4)).shape == (2000, 4, 4)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_thresholds_are_in_unscaled_pre_activations(normalize):
    # Eight times the decoder, an eighth of the encoder: the same SAE, thresholds an eighth.
    one, other = (build(decoder_norm=norm, normalize_activations=normalize) for norm in (1.0, 8.0))
    first, second = (export_jumprelu(sae, tokens()) for sae in (one, other))
    torch.testing.assert_close(8 * second.threshold, first.threshold, rtol=1e-6, atol=0)
    torch.testing.assert_close(second(tokens()), first(tokens()))


def test_bfloat16_stays_bfloat16(tmp_path):
    sae = build(dtype="bfloat16")
    export = export_jumprelu(sae, tokens())
    assert {tensor.dtype for tensor in export.state_dict().values()} == {torch.bfloat16}
    export.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.threshold.dtype == torch.bfloat16
    assert torch.equal(loaded.encode(tokens(50)), export.encode(tokens(50)))
    in_float32 = jumprelu_report(export_jumprelu(build(), tokens()))
    assert jumprelu_report(export).jaccard == pytest.approx(in_float32.jaccard, abs=0.05)  # bfloat16 has 8 bits


def test_a_cast_module_is_exported_in_the_dtype_of_its_weights():
    assert export_jumprelu(build().bfloat16(), tokens().bfloat16()).cfg.dtype == "bfloat16"


# ---- topk


def test_topk_saes_are_exported_with_their_encoder_bias():
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5, apply_b_dec_to_input=False))
    sae.b_enc.data.normal_(std=0.3)
    export = export_jumprelu(sae, tokens())
    assert torch.equal(export.b_enc, sae.b_enc)
    assert not export.cfg.apply_b_dec_to_input
    report = jumprelu_report(export)
    assert report.original_architecture == "topk"
    assert 0.3 < report.jaccard < 1
    active = (sae.encode(tokens()) > 0) & (export.encode(tokens()) > 0)
    assert torch.equal(sae.encode(tokens())[active], export.encode(tokens())[active])


@pytest.mark.parametrize("training", [False, True])
def test_topk_with_acts_that_carry_decoder_norms(training):
    torch.manual_seed(0)
    options = {"d_in": D_IN, "d_sae": D_SAE, "k": 5, "rescale_acts_by_decoder_norm": True}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**options)) if training else TopKSAE(TopKSAEConfig(**options))
    sae.W_dec.data *= torch.linspace(0.3, 3, D_SAE)[:, None]
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    export, x = export_jumprelu(sae, tokens()), tokens(200, seed=2)
    acts, found = sae.encode(x), export.encode(x)
    both = (acts > 0) & (found > 0)
    assert both.sum() > 0.5 * (acts > 0).sum()
    torch.testing.assert_close(found[both], acts[both])
    torch.testing.assert_close(export.decode(acts), sae.decode(acts), rtol=1e-5, atol=1e-4)  # of numbers up to 50
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


# ---- the report


def test_the_report_s_figures_are_those_of_direct_computation_on_held_out_tokens():
    sae, x = build(), tokens(3000)
    export = export_jumprelu(sae, x)
    for each in (sae, export):
        each.requires_grad_(False)
    report = jumprelu_report(export)
    rows = held_out(x)
    assert (report.held_out, report.n_evaluation_tokens) == (True, len(rows))
    assert report.n_calibration_tokens == 3000 - len(rows)
    z = sae.run_time_activation_norm_fn_in(rows).double()
    f, g = sae.encode(rows), export.encode(rows)
    for acts, l0, ev in (
        (f, report.l0_original, report.explained_variance_original),
        (g, report.l0_export, report.explained_variance_export),
    ):
        assert l0 == pytest.approx(float((acts > 0).sum(-1).double().mean()))
        error = (acts.double() @ sae.W_dec.double() + sae.b_dec.double() - z).square().sum()
        assert ev == pytest.approx(float(1 - error / (z - z.mean(0)).square().sum()), abs=1e-6)
    pairs = [
        (set(a.nonzero().flatten().tolist()), set(b.nonzero().flatten().tolist())) for a, b in zip(f, g, strict=True)
    ]
    jaccards = [len(a & b) / len(a | b) if a | b else 1 for a, b in pairs]
    assert report.jaccard == pytest.approx(sum(jaccards) / len(jaccards))
    shared = sum(len(a & b) for a, b in pairs)
    assert report.precision == pytest.approx(shared / sum(len(b) for _, b in pairs))
    assert report.recall == pytest.approx(shared / sum(len(a) for a, _ in pairs))
    assert report.cross_entropy is report.cross_entropy_difference is None


def test_the_report_prints_what_it_is_and_how_good():
    text = str(jumprelu_report(export_jumprelu(build(), tokens())))
    assert "active features per token (L0)" in text
    assert "held-out tokens" in text
    assert "cross-entropy" not in text
    assert "too few" not in text


def test_few_tokens_are_judged_by_themselves_and_the_report_says_so():
    x = tokens(639)
    report = jumprelu_report(export_jumprelu(build(), x.split(100)))
    assert not report.held_out
    assert report.n_calibration_tokens == report.n_evaluation_tokens == 639
    assert "too few activations to hold any out" in str(report)
    assert "639 calibration tokens" in report.note
    assert jumprelu_report(export_jumprelu(build(), tokens(640))).held_out


def test_held_out_tokens_are_bounded():
    rows = tokens(100_000)
    report = jumprelu_report(export_jumprelu(build(), rows.split(10_000)))
    assert report.n_evaluation_tokens == MAX_HELD_OUT
    assert report.n_calibration_tokens == 100_000 - MAX_HELD_OUT


def test_cross_entropies_are_those_of_the_model_with_each_reconstruction(model):
    hook = "blocks.1.hook_resid_pre"
    metadata = SAEMetadata(hook_name=hook, context_size=32, prepend_bos=True)
    sae = build(d_in=192, d_sae=64, metadata=metadata)

    def store():
        with expected_messages_off():
            return ActivationsStore.from_sae(
                model, sae, text_dataset(load_text().held_out[:8]), streaming=False, store_batch_size_prompts=3,
                device="cpu",
            )  # fmt: skip

    prompts = store().get_batch_tokens(5)
    own = store()
    # The activations that come after them in the same text, read while calibrating.
    batches = (own.get_activations(own.get_batch_tokens()) for _ in range(10))
    export = export_jumprelu(sae, batches, model=model, activation_store=own, cross_entropy_tokens=130)
    report = jumprelu_report(export)
    assert report.n_calibration_tokens + report.n_evaluation_tokens == 10 * 3 * 32
    assert report.n_cross_entropy_tokens == 5 * 31
    with torch.no_grad():
        assert report.cross_entropy == pytest.approx(float(model(prompts, return_type="loss")), rel=1e-5)
        for each, expected in ((sae, report.cross_entropy_original), (export, report.cross_entropy_export)):
            hooks = [(hook, lambda acts, hook, each=each: each(acts))]
            loss = model.run_with_hooks(prompts, return_type="loss", fwd_hooks=hooks)
            assert expected == pytest.approx(float(loss), rel=1e-5)
    assert report.cross_entropy_difference == report.cross_entropy_export - report.cross_entropy_original
    assert f"cross-entropy (model: {report.cross_entropy:.4f})" in str(report)


def test_cross_entropy_of_joined_heads(model):
    metadata = SAEMetadata(hook_name="blocks.1.attn.hook_z", context_size=32, prepend_bos=True)
    sae = build(d_in=192, d_sae=64, metadata=metadata, reshape_activations="hook_z")
    with expected_messages_off():
        store = ActivationsStore.from_sae(
            model, sae, text_dataset(load_text().held_out[:8]), streaming=False, store_batch_size_prompts=2,
            device="cpu",
        )  # fmt: skip
    tokens_ = store.get_batch_tokens(3)
    x = model.run_with_cache(tokens_, names_filter=[sae.cfg.metadata.hook_name])[1][sae.cfg.metadata.hook_name]
    assert x.ndim == 4
    export = export_jumprelu(sae, x, model=model, activation_store=store, cross_entropy_tokens=64)
    assert export.hook_z_reshaping_mode
    assert export(x).shape == x.shape
    report = jumprelu_report(export)
    assert report.cross_entropy < report.cross_entropy_export < 20


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(64, 1500))
def test_metrics_keep_within_their_bounds(seed, n):
    report = jumprelu_report(export_jumprelu(build(), tokens(n, seed=seed)))
    assert 0 <= report.jaccard <= 1
    assert 0 <= report.precision <= 1
    assert 0 <= report.recall <= 1
    assert report.precision * report.l0_export == pytest.approx(report.recall * report.l0_original)
    assert report.n_calibration_tokens + report.n_evaluation_tokens * report.held_out == n


# ---- refused


def nan_at(index: int) -> torch.Tensor:
    x = tokens()
    x[index, 3] = torch.nan
    return x


@pytest.mark.parametrize(
    ("activations", "error", "message"),
    [
        (lambda: tokens()[:0], ValueError, "an empty batch"),
        (list, ValueError, "too few activations: 0 tokens"),
        (lambda: tokens(63), ValueError, "too few activations: 63 tokens; a calibration needs at least 64"),
        (lambda: nan_at(1234).split(100), ValueError, "token 1234 holds a NaN or an infinity"),
        (lambda: nan_at(5)[:100], ValueError, "token 5 holds a NaN"),
        (lambda: tokens(d_in=D_IN + 1), ValueError, r"d_in = 16 on its last axis, got \[2000, 17\]"),
        (lambda: tokens().long(), TypeError, "must be floating-point activations"),
        (lambda: [[1.0]], TypeError, "a tensor or an iterable of tensors, got a list"),
    ],
)
def test_activations_that_cannot_be_used_are_one_error(activations, error, message):
    with pytest.raises(error, match=message) as raised:
        export_jumprelu(build(), activations())
    assert "\n" not in str(raised.value)


def test_activations_that_overflow_the_sae_are_one_error():
    with pytest.raises(ValueError, match=r"pre-activations in torch\.float16 are not finite on these activations"):
        export_jumprelu(build(dtype="float16"), 1e5 * tokens())


def test_the_random_state_is_left_alone():
    sae, x = build(), tokens()
    before = torch.get_rng_state()
    export_jumprelu(sae, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sae", "error", "message"),
    [
        (lambda: object(), TypeError, "expected a SAELens SAE"),
        (
            lambda: Transcoder(TranscoderConfig(d_in=4, d_sae=8, d_out=4, apply_b_dec_to_input=False)),
            TypeError,
            "a transcoder",
        ),
        (
            lambda: StandardSAE(StandardSAEConfig(d_in=4, d_sae=8)),
            ValueError,
            "takes top_afa, afa_threshold, afa_pursuit, topk SAEs, got 'standard'",
        ),
        (
            lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)),
            ValueError,
            r"is a jumprelu SAE once it is saved: use sae.save_inference_model",
        ),
        (lambda: export_jumprelu(build(), tokens()), ValueError, "got 'jumprelu'"),
        (lambda: build(normalize_activations="expected_average_only_in"), ValueError, "fold it first"),
    ],
)
def test_other_saes_are_one_error(sae, error, message):
    with pytest.raises(error, match=message) as raised:
        export_jumprelu(sae(), tokens())
    assert "\n" not in str(raised.value)


def test_options_that_do_not_go_together(model):
    with pytest.raises(ValueError, match="needs both model and activation_store"):
        export_jumprelu(build(), tokens(), model=model)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        export_jumprelu(build(), tokens(), batch_size=0)
    with pytest.raises(ValueError, match="was not written by export_jumprelu"):
        jumprelu_report(build())


def test_a_model_that_does_not_fit_is_said_before_activations_are_read(model):
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_pre", context_size=32, prepend_bos=True)
    sae = build(d_in=192, d_sae=64, metadata=metadata)
    with expected_messages_off():
        store = ActivationsStore.from_sae(
            model, sae, text_dataset(load_text().held_out[:1]), streaming=False, device="cpu"
        )
    unread = iter([tokens()])
    options = {"model": model, "activation_store": store}
    with pytest.raises(ValueError, match=r"d_in is 16, but activations at blocks\.1\.hook_resid_pre are 192 wide"):
        export_jumprelu(build(), unread, **options)
    with pytest.raises(ValueError, match="does not say its hook"):
        export_jumprelu(build(metadata=SAEMetadata()), unread, **options)
    with pytest.raises(ValueError, match="cross_entropy_tokens must be at least 1"):
        export_jumprelu(sae, unread, cross_entropy_tokens=0, **options)
    store.dataset = None  # as of a store that reads cached activations
    with pytest.raises(ValueError, match="reads cached activations and has no token ids"):
        export_jumprelu(sae, unread, **options)
    assert len(list(unread)) == 1
