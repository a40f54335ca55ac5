"""Decoding under layer_norm: any number of times, with the statistics of the tokens that were encoded."""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import small_saes
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from small_saes import D_IN, D_SAE, INFERENCE, KINDS, TRAINING
from torch import Tensor

from sae_lens_afa.saes._layer_norm import _Encoded

ALL = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, **overrides: Any) -> Any:
    return small_saes.build(
        kind, **{"normalize_activations": "layer_norm", **overrides}
    ).eval()  # in which a code depends on nothing else


def two_batches(*leading: int) -> tuple[Tensor, Tensor]:
    """Of one shape, and of very different statistics."""
    return torch.randn(*leading, D_IN), 10 * torch.randn(*leading, D_IN) + 5


def as_it_reads(sae: SAE, x: Tensor, feature_acts: Tensor) -> Tensor:
    """The decoder, and each token's own mean and standard deviation."""
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        feature_acts = feature_acts / sae.W_dec.norm(dim=-1)
    recons = feature_acts @ sae.W_dec + sae.b_dec
    return recons * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)


@ALL
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_a_code_is_decoded_any_number_of_times_whatever_was_encoded_since(kind, leading):
    sae = build(kind)
    a, b = two_batches(*leading)
    wanted = as_it_reads(sae, a, sae.encode(a))
    f_a = sae.encode(a)
    f_b = sae.encode(b)
    sae.encode(torch.randn(9, D_IN))
    for _ in range(2):
        torch.testing.assert_close(sae.decode(f_a), wanted)
        torch.testing.assert_close(sae.decode(f_b), as_it_reads(sae, b, f_b))


@ALL
def test_an_edit_in_place_keeps_the_statistics(kind):
    sae = build(kind)
    a, b = two_batches(5)
    with torch.no_grad():
        acts = sae.encode(a)
        sae.encode(b)
        acts[:, 3] = 2.0
        torch.testing.assert_close(sae.decode(acts), as_it_reads(sae, a, acts))


@ALL
def test_a_copy_has_the_statistics_of_the_last_batch_that_was_encoded(kind):
    sae = build(kind)
    a, b = two_batches(5)
    f_a, f_b = sae.encode(a), sae.encode(b)
    sae.decode(f_a)  # which is no encode
    edited = f_b + 1
    torch.testing.assert_close(sae.decode(edited), as_it_reads(sae, b, edited))
    torch.testing.assert_close(sae.decode(edited), as_it_reads(sae, b, edited))
    # That it is of another batch cannot be told from a copy.
    torch.testing.assert_close(sae.decode(f_a.clone()), as_it_reads(sae, b, f_a))


@ALL
def test_a_code_of_another_shape_is_one_clear_error(kind):
    sae = build(kind)
    a, b = two_batches(5)
    codes = [sae.encode(a), sae.encode(b)]
    for wrong in (torch.cat(codes), torch.stack(codes), codes[0][0], codes[0][:3]):
        with pytest.raises(ValueError, match=r"layer_norm.*one encoded was \[5\]. Encode these tokens first") as error:
            sae.decode(wrong)
        assert str(list(wrong.shape)) in str(error.value)
        assert "normalize_activations='none'" in str(error.value)
    torch.testing.assert_close(sae.decode(codes[1]), as_it_reads(sae, b, codes[1]))


@ALL
def test_a_decode_without_an_encode_is_one_clear_error(kind):
    with pytest.raises(ValueError, match=r"layer_norm.*none was encoded yet. Encode these tokens first"):
        build(kind).decode(torch.zeros(3, D_SAE))


@ALL
def test_without_layer_norm_anything_is_decoded(kind):
    sae = build(kind, normalize_activations="none")
    codes = torch.cat([sae.encode(x) for x in two_batches(5)])
    assert sae.decode(codes).shape == (10, D_IN)


@ALL
def test_gradients_go_through_the_statistics(kind):
    sae = build(kind, dtype="float64")
    for edit in (lambda acts: acts, lambda acts: 2 * acts):
        found = []
        for decode in (lambda x, acts: sae.decode(acts), lambda x, acts: as_it_reads(sae, x, acts)):
            x = torch.linspace(-1, 2, 4 * D_IN, dtype=torch.float64).sin().reshape(4, D_IN).requires_grad_()
            acts = edit(sae.encode(x))
            sae.decode(acts)  # the second decode has them, too
            (grad,) = torch.autograd.grad(decode(x, acts).square().sum(), x)
            found.append(grad)
        torch.testing.assert_close(*found)


@ALL
def test_a_detached_code_is_decoded_without_the_graph_of_its_batch(kind):
    sae, x = build(kind), torch.randn(5, D_IN, requires_grad=True)
    feature_acts = sae.encode(x)
    sae.decode(feature_acts).sum().backward()  # which frees that graph
    steered = feature_acts.detach().clone().requires_grad_()
    sae.decode(steered).sum().backward()
    expected = sae.W_dec.sum(-1).detach() * x.detach().std(-1, keepdim=True)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        expected = expected / sae.W_dec.detach().norm(dim=-1)
    torch.testing.assert_close(steered.grad, expected)


@ALL
def test_what_was_encoded_in_inference_mode_can_be_trained_on(kind):
    sae, x = build(kind), torch.randn(5, D_IN)
    with torch.inference_mode():
        feature_acts = sae.encode(x)
    sae.decode(feature_acts.clone()).sum().backward()
    assert sae.W_dec.grad.isfinite().all()


@ALL
def test_threads_do_not_share_statistics(kind):
    sae = build(kind)
    batches = [(i + 1) * torch.randn(50, D_IN) for i in range(12)]

    def output(x: Tensor) -> Tensor:
        with torch.no_grad():
            return sae(x)

    expected = [output(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(output, batches), expected, strict=True):
            torch.testing.assert_close(found, wanted)


@ALL
def test_a_code_of_another_width_is_named(kind):
    sae = build(kind)
    sae.encode(torch.randn(5, D_IN))
    with pytest.raises(ValueError, match=rf"feature_acts: the last axis must be d_sae = {D_SAE}"):
        sae.decode(torch.zeros(5, D_SAE + 1))


@pytest.mark.parametrize("kind", TRAINING)
def test_a_training_step_between_encode_and_decode_changes_nothing(kind):
    sae = build(kind)
    a, b = two_batches(6)
    acts = sae.encode(a)
    coefficients = dict.fromkeys(sae.get_coefficients(), 1.0)
    out = sae.train().training_forward_pass(
        TrainStepInput(
            sae_in=b, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=1, is_logging_step=False
        )
    )
    sae.encode(torch.randn(3, D_IN))
    torch.testing.assert_close(sae.decode(acts), as_it_reads(sae, a, acts))
    torch.testing.assert_close(sae.decode(out.feature_acts), out.sae_out)


@pytest.mark.parametrize("kind", INFERENCE)
def test_heads_are_joined_and_split_again(kind):
    sae = build(kind, reshape_activations="hook_z", metadata=SAEMetadata(hook_name="blocks.0.attn.hook_z"))
    a, b = (x.reshape(5, 3, 4) for x in two_batches(5))
    acts = sae.encode(a)
    sae.encode(b)
    torch.testing.assert_close(sae.decode(acts), as_it_reads(sae, a.flatten(-2), acts).reshape(5, 3, 4))


@ALL
def test_the_error_term_completes_the_output(kind):
    sae = build(kind)
    a, b = two_batches(5)
    acts = sae.encode(a)
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        sae.use_error_term = True
    torch.testing.assert_close(sae(b), b)
    torch.testing.assert_close(sae.decode(acts), as_it_reads(sae, a, acts))


@ALL
def test_a_copy_of_the_sae_is_independent_and_starts_without_a_batch(kind):
    sae = build(kind)
    a, b = two_batches(5)
    acts = sae.encode(a.requires_grad_())
    twin = copy.deepcopy(sae)
    with pytest.raises(ValueError, match="none was encoded yet"):
        twin.decode(acts)
    f_b = twin.encode(b)
    torch.testing.assert_close(twin.decode(f_b), as_it_reads(twin, b, f_b))
    torch.testing.assert_close(sae.decode(acts.clone()), as_it_reads(sae, a, acts))


def test_what_is_remembered_can_be_pickled():
    assert pickle.loads(pickle.dumps(_Encoded())).last is None


@ALL
def test_saelens_own_names_hold_the_last_batch(kind):
    sae = build(kind)
    assert not hasattr(sae, "ln_std")
    a, b = two_batches(5)
    f_a = sae.encode(a)
    f_b = sae.encode(b)
    sae.decode(f_a)
    torch.testing.assert_close(sae.ln_std, b.std(-1, keepdim=True))
    torch.testing.assert_close(sae.ln_mu, b.mean(-1, keepdim=True))
    sae.decode(f_b)
    assert hasattr(sae, "ln_mu")


def test_codes_that_nobody_holds_are_forgotten():
    sae = build("top_afa")
    with torch.no_grad():
        for _ in range(5):
            sae(torch.randn(4, D_IN))
    gc.collect()
    assert len(sae._encoded.of_code) == 0


@ALL
def test_a_compiled_forward_is_one_graph_with_the_same_output(kind):
    torch.compiler.reset()
    sae = build(kind)
    x, _ = two_batches(5)
    compiled = torch.compile(sae.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), sae(x))
    torch.testing.assert_close(compiled(2 * x + 1), sae(2 * x + 1))
