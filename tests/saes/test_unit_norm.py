"""Decoder rows at norm 1 in a loop that somebody writes by hand, however the SAE came to it."""

from __future__ import annotations

import copy
import functools

import afa_threshold_helpers
import pytest
import top_afa_helpers
import torch
from sae_lens import TrainingSAE
from torch import Tensor

LR = 0.005
ARCHITECTURES = {"top_afa": top_afa_helpers, "afa_threshold": afa_threshold_helpers}
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "fused adam": functools.partial(torch.optim.Adam, fused=True),
    "foreach sgd": functools.partial(torch.optim.SGD, foreach=True),
    "sgd with momentum": functools.partial(torch.optim.SGD, momentum=0.9),
}


def fresh(sae: TrainingSAE) -> TrainingSAE:
    return sae


def copied(sae: TrainingSAE) -> TrainingSAE:
    return copy.deepcopy(sae.train())


def assigned(sae: TrainingSAE) -> TrainingSAE:
    sae.train().load_state_dict({k: v.clone() for k, v in sae.state_dict().items()}, assign=True)
    return sae


def assigned_fresh(sae: TrainingSAE) -> TrainingSAE:
    sae.load_state_dict({k: v.clone() for k, v in sae.state_dict().items()}, assign=True)
    return sae


def back_from_eval(sae: TrainingSAE) -> TrainingSAE:
    return sae.eval().train()


# Every origin with one optimizer, and every optimizer where it is its steps that say that the SAE is trained.
RUNS = [("adam", origin) for origin in (fresh, copied, assigned, assigned_fresh, back_from_eval)]
RUNS += [(optimizer, fresh) for optimizer in OPTIMIZERS if optimizer != "adam"]


def loss_of(sae: TrainingSAE, x: Tensor) -> Tensor:
    return ARCHITECTURES[sae.cfg.architecture()].step(sae, x).loss


def loop(sae: TrainingSAE, optimizer: torch.optim.Optimizer, x: Tensor, n_steps: int) -> None:
    for _ in range(n_steps):
        loss_of(sae, x).backward()
        optimizer.step()
        optimizer.zero_grad()


def batch(sae: TrainingSAE) -> Tensor:
    return 3 * torch.randn(30, sae.cfg.d_in)


@pytest.mark.parametrize(("optimizer", "origin"), RUNS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_stay_at_norm_one_in_a_loop_by_hand(architecture, optimizer, origin):
    sae = origin(ARCHITECTURES[architecture].build())
    x, before = batch(sae), sae.W_dec.detach().clone()
    loop(sae, OPTIMIZERS[optimizer](sae.parameters(), lr=LR), x, 50)
    assert (sae.W_dec - before).abs().max() > LR
    # Rows are at norm 1 before each step. One of Adam's moves an entry by about lr and a row by lr * sqrt(d_in), at
    # right angles to it but for the momentum's part of earlier steps.
    assert ((sae.W_dec.norm(dim=-1) - 1).abs() <= 4 * LR).all()


def by_forward(sae: TrainingSAE, x: Tensor) -> Tensor:
    return sae(x)


def by_encode_and_decode(sae: TrainingSAE, x: Tensor) -> Tensor:
    return sae.decode(sae.encode(x))


def by_hidden_pre(sae: TrainingSAE, x: Tensor) -> Tensor:
    return sae.decode(sae.encode_with_hidden_pre(x)[0])


@pytest.mark.parametrize("way", [by_forward, by_encode_and_decode, by_hidden_pre])
@pytest.mark.parametrize("origin", [fresh, copied, assigned])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_stay_at_norm_one_whatever_a_loop_calls(architecture, origin, way):
    sae = origin(ARCHITECTURES[architecture].build())
    x, optimizer = batch(sae), torch.optim.Adam(sae.parameters(), lr=LR)
    for _ in range(50):
        (way(sae, x) - x).square().sum(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    # As above.
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.cfg.d_sae), atol=4 * LR, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_pass_of_a_fresh_sae_leaves_raw_gradients_and_weights(architecture):
    sae = ARCHITECTURES[architecture].build()
    sae.W_dec.data *= 1.5
    before, x = sae.W_dec.detach().clone(), batch(sae)
    for _ in range(2):  # accumulated: no step of an optimizer lies between
        loss_of(sae, x).backward()
    assert torch.equal(sae.W_dec, before)
    parallel = (sae.W_dec.grad * sae.W_dec).sum(-1).abs()
    assert parallel.max() > 1e-3 * sae.W_dec.grad.norm()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_that_were_loaded_between_passes_are_no_step(architecture):
    sae = ARCHITECTURES[architecture].build()
    x = batch(sae)
    loss_of(sae, x).backward()
    sae.load_state_dict({k: 1.5 * v for k, v in sae.state_dict().items()})
    before = sae.W_dec.detach().clone()
    loss_of(sae, x).backward()
    assert torch.equal(sae.W_dec, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loop_keeps_its_parameters_and_does_not_change_outputs_where_it_arms(architecture):
    sae = ARCHITECTURES[architecture].build(dtype="float64")
    parameter, x = sae.W_dec, batch(sae).double()
    loss_of(sae, x).backward()
    with torch.no_grad():
        sae.W_dec.mul_(1.1)
        expected = sae(x)
        loss_of(sae, x)
        assert sae.W_dec is parameter
        torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones_like(sae.W_dec[:, 0]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copy_in_the_middle_of_a_run_goes_on_as_the_original(architecture):
    sae = ARCHITECTURES[architecture].build().train()
    x = batch(sae)
    loop(sae, torch.optim.SGD(sae.parameters(), lr=LR), x, 3)
    twin = copy.deepcopy(sae)
    for each in (sae, twin):
        loop(each, torch.optim.SGD(each.parameters(), lr=LR), x, 3)
    for name, value in sae.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_eval_mode_a_loop_is_left_alone(architecture):
    sae = ARCHITECTURES[architecture].build().eval()
    sae.W_dec.data *= 2
    loop(sae, torch.optim.SGD(sae.parameters(), lr=1e-6), batch(sae), 3)
    assert (sae.W_dec.norm(dim=-1) > 1.9).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_decoder_that_is_not_trained_is_left_alone(architecture):
    sae = ARCHITECTURES[architecture].build()
    sae.W_dec.requires_grad_(False)
    before = sae.W_dec.clone()
    loop(sae.train(), torch.optim.SGD([sae.W_enc, sae.b_dec], lr=LR), batch(sae), 2)
    assert torch.equal(sae.W_dec, before)
