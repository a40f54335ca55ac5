"""Training afa_threshold: losses and gradients on every path, the warm-up, the start from data."""

from __future__ import annotations

import copy
import sys

import pytest
import reference
import torch
from afa_threshold_helpers import D_IN, D_SAE, build, step, tokens, true_directions
from sae_lens.saes.sae import TrainStepInput
from step_paths import PATHS, take
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from sae_lens_afa import AFAThresholdTrainingSAE, AFAThresholdTrainingSAEConfig

__all__ = ["take"]  # a fixture

DEAD = torch.arange(D_SAE) % 3 == 0


def plain_loss(sae: AFAThresholdTrainingSAE, x: Tensor, progress: float) -> Tensor:
    """The step as the definitions read, by autograd alone."""
    cfg = sae.cfg
    scale = cfg.threshold_scale * (cfg.threshold_start + progress * (1 - cfg.threshold_start))
    z = sae.run_time_activation_norm_fn_in(x)
    centered = z - sae.b_dec
    hidden_pre = centered @ sae.W_enc
    threshold = reference.universal_threshold(centered.detach(), cfg.d_sae, scale)[..., None].to(hidden_pre.dtype)
    scaled = hidden_pre * sae.W_dec.detach().norm(dim=-1)
    mask = (scaled > threshold).to(scaled)
    recons = (hidden_pre * mask) @ sae.W_dec + sae.b_dec
    return (recons - z).square().sum(-1).mean()


# ---- loss and gradients


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("progress", [1.0, 0.25])
@pytest.mark.parametrize("shape", [(30,), (5, 6)])
def test_loss_and_gradients_are_those_of_autograd(path, normalize, progress, shape, take):
    sae, x = build(normalize_activations=normalize), tokens(*shape)
    expected = plain_loss(sae, x, progress)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    take(path, sae)
    out = step(sae, x, DEAD, progress=progress)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected)
    assert set(out.losses) == {"mse_loss"}
    for name, p in sae.named_parameters():
        # float32 sums in another order: 1e-5 of the largest entry.
        assert (p.grad - gradients[name]).abs().max() <= 1e-5 * gradients[name].abs().max(), name


@pytest.mark.parametrize("path", PATHS)
def test_the_input_gets_its_gradient_where_it_asks_for_one(path, take):
    sae, x = build(), tokens(20).requires_grad_()
    (expected,) = torch.autograd.grad(plain_loss(sae, x, 1.0), x)
    take(path, sae)
    step(sae, x).loss.backward()
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_gradients_pass_gradcheck(path, take):
    sae, x = build(dtype="float64"), tokens(6, dtype=torch.float64)
    take(path, sae)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sae = sae

        def forward(self, x: Tensor) -> Tensor:
            return step(self.sae, x).loss

    module = Loss()

    def loss(*parameters: Tensor) -> Tensor:
        names = ("sae.W_enc", "sae.W_dec", "sae.b_dec")
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    parameters = tuple(p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_dec))
    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


@pytest.mark.parametrize("path", PATHS)
def test_no_matmul_over_the_batch_is_spent_on_the_bias(path, take):
    sae, x = build(), tokens(64)
    take(path, sae)
    with FlopCounterMode(display=False) as counter:
        step(sae, x).loss.backward()
    matmul = 2 * len(x) * D_IN * D_SAE
    n_matmuls = 1 if path == "sparse" else 5  # encode, decode, d acts, dW_dec, dW_enc
    assert n_matmuls * matmul <= counter.get_total_flops() <= (n_matmuls + 0.1) * matmul


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc (cuda is not involved)")
def test_a_step_takes_no_more_than_pre_activations_and_code(client):
    script = """
import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens_afa import AFAThresholdTrainingSAE, AFAThresholdTrainingSAEConfig
def peak_kib():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
rows, d_in, d_sae = 2048, 64, 8192
sae = AFAThresholdTrainingSAE(AFAThresholdTrainingSAEConfig(d_in=d_in, d_sae=d_sae)).train()
def step(x):
    sae.training_forward_pass(TrainStepInput(x, {"threshold": 1.0}, None, 1, False)).loss.backward()
x = torch.randn(rows, d_in)
step(x[:64])
open("/proc/self/clear_refs", "w").write("5")
before = peak_kib()
step(x)
print((peak_kib() - before) * 1024 / (4 * rows * d_sae))
"""
    # Two of [tokens, d_sae]; gradients of the weights are 1/32 of that each, and were there before.
    assert float(client.run(script).output) <= 2.25


# ---- the warm-up


def test_c_rises_from_start_to_scale_and_encoding_has_the_last():
    sae, x = build(threshold_start=1 / 3, threshold_scale=0.9, threshold_warm_up_steps=7), tokens(40)
    assert sae.get_coefficients() == {"threshold": (1.0, 7)}
    final = sae.encode(x)
    centered, norms = x - sae.b_dec.detach(), sae.W_dec.detach().norm(dim=-1)
    for progress, scale in ((0.0, 0.3), (0.5, 0.6), (1.0, 0.9)):
        out = step(sae, x, progress=progress, logging=True)
        threshold = reference.universal_threshold(centered, D_SAE, scale)
        assert torch.equal(out.feature_acts, reference.above_threshold(out.hidden_pre.detach(), threshold, norms))
        assert out.metrics["afa_threshold_scale"] == pytest.approx(scale)
        assert torch.equal(sae.encode(x), final)
    assert torch.equal(out.feature_acts, final)


def test_without_a_warm_up_the_scale_holds_at_once():
    assert build(threshold_warm_up_steps=0).get_coefficients() == {"threshold": (1.0, 0)}


def test_metrics_come_on_logging_steps_only():
    sae, x = build(), tokens(50)
    assert step(sae, x).metrics == {}
    assert set(step(sae, x, logging=True).metrics) == {
        "afa_norm_ratio", "afa_epsilon_lbo", "afa_frac_over_activated", "l0_std", "n_nonfinite", "afa_threshold_scale",
    }  # fmt: skip


# ---- the start from data


def fresh(**overrides) -> AFAThresholdTrainingSAE:
    torch.manual_seed(5)
    return AFAThresholdTrainingSAE(AFAThresholdTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **overrides)).train()


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_the_bias_starts_as_the_mean_of_the_first_batch(normalize):
    sae, x = fresh(normalize_activations=normalize), tokens(50) + 2 * torch.randn(D_IN)
    rows = sae.W_dec.detach().clone()
    step(sae, x, n=0)
    z = sae.run_time_activation_norm_fn_in(x)
    torch.testing.assert_close(sae.b_dec, torch.nn.Parameter(z.mean(0)))
    assert torch.equal(sae.W_dec, rows)


@pytest.mark.parametrize(
    ("n", "mode"),
    [(1, True), (0, False)],
)
def test_otherwise_weights_start_as_they_were_made(n, mode):
    sae = fresh()
    before = copy.deepcopy(sae.state_dict())
    step(sae.train(mode), tokens(50) + 1, n=n)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_weights_that_were_trained_before_are_left_alone():
    sae = build().train()
    before = copy.deepcopy(sae.state_dict())
    step(sae, tokens(50) + 1, n=0)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


# ---- the run


def train(sae: AFAThresholdTrainingSAE, x: Tensor, steps: range, optimizer: torch.optim.Optimizer) -> None:
    for n in steps:
        sae.train()
        step(sae, x, DEAD, progress=min(1.0, (n + 1) / 6), n=n).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_checkpoint_continues_exactly(tmp_path):
    x = tokens(60) + 1
    whole = fresh()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, x, range(5), optimizer)
    whole.save_model(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    train(whole, x, range(5, 20), optimizer)
    resumed = fresh()
    other = torch.optim.Adam(resumed.parameters(), lr=0.01)
    other.load_state_dict(saved)
    resumed.load_weights_from_checkpoint(tmp_path)
    train(resumed, x, range(5, 20), other)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_training_keeps_decoder_rows_at_norm_one():
    sae = fresh()
    train(sae, tokens(60), range(5), torch.optim.Adam(sae.parameters(), lr=0.1))
    step(sae, tokens(60)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_training_finds_the_features_of_the_data():
    sae = fresh(threshold_warm_up_steps=150)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)

    def found() -> float:
        return (sae.W_dec @ true_directions().T).amax(0).mean().item()

    # Of 40 random directions in 24 dimensions the nearest one overlaps by 0.4; three other seeds reached 0.87 to 0.90.
    assert found() < 0.5
    for n in range(300):
        sae.train()
        step(sae, tokens(128), progress=min(1.0, (n + 1) / 150), n=n).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert found() > 0.8


def test_under_autocast_the_selection_is_that_of_float32():
    sae, x = build(), tokens(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(sae, x, DEAD)
    out.loss.backward()
    threshold = reference.universal_threshold((x - sae.b_dec).detach(), D_SAE, 1.0)
    expected = reference.above_threshold(out.hidden_pre.detach(), threshold, sae.W_dec.detach().norm(dim=-1))
    assert out.hidden_pre.dtype == torch.bfloat16
    assert torch.equal(out.feature_acts, expected)
    assert out.loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in sae.parameters())


@pytest.mark.slow
def test_a_warm_up_is_not_compiled_anew_for_each_step():
    sae, x = build().train(), tokens(20)
    torch.compiler.reset()
    counters["stats"].clear()
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager")
    for n in range(1, 13):
        out = compiled(TrainStepInput(x, {"threshold": n / 15}, None, n, is_logging_step=False))
        assert torch.equal(out.feature_acts, step(sae, x, progress=n / 15, n=n).feature_acts)
    # What is before the break for the start from data and what follows, each for the first number and for any.
    assert counters["stats"]["unique_graphs"] <= 4


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step():
    sae, x = build().train(), tokens(20)
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager")
    plain = step(sae, x, DEAD)
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    out = compiled(TrainStepInput(x, {"threshold": 1.0}, DEAD, 1, is_logging_step=False))
    out.loss.backward()
    assert torch.equal(out.feature_acts, plain.feature_acts)
    for name, p in sae.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
