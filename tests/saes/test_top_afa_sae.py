"""top_afa as a SAELens architecture: what SAELens' own suite asks of `topk` and `batchtopk`, asked of ours."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainingSAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_lens_afa import TopAFASAE, TopAFASAEConfig, TopAFATrainingSAE, TopAFATrainingSAEConfig
from sae_lens_afa.functional import afa_loss

D_IN, D_SAE = 12, 40


def build(**overrides) -> TopAFATrainingSAE:
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, **overrides}))
    sae.b_dec.data.normal_(std=0.1)
    return sae


def to_inference(sae: TopAFATrainingSAE, path: Path) -> TopAFASAE:
    sae.save_inference_model(path)
    return SAE.load_from_disk(path)


def step(sae: TrainingSAE, x: Tensor, dead: Tensor | None = None, *, logging: bool = False, **coefficients: float):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=coefficients or {"afa": sae.cfg.afa_coefficient},
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=logging,
        )
    )


def train(sae: TopAFATrainingSAE, x: Tensor, n_steps: int, optimizer: torch.optim.Optimizer) -> TrainStepOutput:
    for _ in range(n_steps):
        sae.train()
        out = step(sae, x)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return out


# ---- configuration


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("d_in", 0, "integer >= 1, got 0"),
        ("d_sae", 0, "integer >= 1, got 0"),
        ("d_sae", 2.5, "integer >= 1, got 2.5"),
        ("apply_b_dec_to_input", False, "must be True, got False"),
        ("normalize_activations", "covariance_whitening", "'none', 'expected_average_only_in', 'layer_norm'"),
        ("normalize_activations", "constant_norm_rescale", "'none', 'expected_average_only_in', 'layer_norm'"),
        ("afa_coefficient", -0.1, ">= 0, got -0.1"),
        ("afa_coefficient", float("nan"), "finite number >= 0, got nan"),
        ("afa_coefficient", "1/32", "finite number >= 0, got '1/32'"),
        ("afa_warm_up_steps", -1, "integer >= 0, got -1"),
        ("aux_loss_coefficient", -1.0, ">= 0, got -1.0"),
        ("k_aux", 0, "integer >= 1, got 0"),
        ("loss_reduction", "median", "'sum', 'mean', got 'median'"),
        ("decoder_init_norm", 0.0, "> 0, got 0.0"),
    ],
)
def test_a_bad_config_value_names_its_field_and_what_was_expected(field, value, expected):
    with pytest.raises(ValueError, match=rf"TopAFATrainingSAEConfig\.{field}.*{expected}"):
        TopAFATrainingSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, field: value})


@pytest.mark.parametrize("field", ["d_sae", "apply_b_dec_to_input"])
def test_the_inference_config_is_checked_too(field):
    with pytest.raises(ValueError, match=rf"TopAFASAEConfig\.{field}"):
        TopAFASAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, field: 0})


def test_config_round_trips_through_its_dict():
    cfg = TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, afa_coefficient=1 / 64, k_aux=7, loss_reduction="mean")
    as_json = json.loads(json.dumps(cfg.to_dict()))
    assert TrainingSAEConfig.from_dict(as_json).to_dict() == cfg.to_dict()
    assert as_json["architecture"] == "top_afa"
    assert cfg.get_inference_sae_cfg_dict()["architecture"] == "top_afa"


def test_the_paper_setting_differs_from_the_default_in_scale_and_residual_only():
    paper, default = (
        c.to_dict()
        for c in (
            TopAFATrainingSAEConfig.paper(d_in=D_IN, d_sae=D_SAE),
            TopAFATrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
        )
    )
    differing = {k for k in paper if paper[k] != default[k]} - {"metadata"}
    assert differing == {"loss_reduction", "detach_aux_residual"}
    assert TopAFATrainingSAEConfig.paper(d_in=2, d_sae=3, k_aux=5, afa_coefficient=0.5).k_aux == 5


# ---- encoding


@given(st.lists(st.integers(1, 4), max_size=3), st.sampled_from(["none", "layer_norm"]))
def test_encoding_follows_the_rule_for_any_leading_shape(shape, normalize):
    torch.manual_seed(len(shape))
    sae = build(normalize_activations=normalize)
    x = torch.randn(*shape, D_IN) * 3
    acts, hidden_pre = sae.encode_with_hidden_pre(x)
    z = x
    if normalize == "layer_norm":
        z = x - x.mean(-1, keepdim=True)
        z = z / (z.std(-1, keepdim=True) + 1e-5)
    centered = z - sae.b_dec
    assert torch.equal(hidden_pre, centered @ sae.W_enc)
    expected, near_tie = reference.norm_matching_topk(
        hidden_pre.detach(), centered.double().norm(dim=-1), sae.W_dec.detach().norm(dim=-1)
    )
    assert ((acts == expected).all(-1) | near_tie).all()


def test_a_code_does_not_depend_on_the_rest_of_the_batch(tmp_path):
    sae = to_inference(build(), tmp_path)
    x = torch.randn(20, D_IN)
    with torch.no_grad():
        alone = torch.cat([sae.encode(row[None]) for row in x])
        assert torch.equal(alone > 0, sae.encode(x) > 0)
        torch.testing.assert_close(alone, sae.encode(x))


def test_inputs_in_low_precision_are_encoded_in_the_precision_of_the_sae():
    sae = build()
    x = torch.randn(5, D_IN).bfloat16()
    assert sae.encode(x).dtype == torch.float32
    assert torch.equal(sae.encode(x), sae.encode(x.float()))


def test_scaling_the_input_scales_the_code():
    sae = build(normalize_activations="none")
    x = torch.randn(8, D_IN)
    acts = sae.encode(x)
    sae.b_dec.data *= 4
    assert torch.equal(sae.encode(4 * x), 4 * acts)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_token_stays_visible_and_leaves_the_others_alone(bad):
    sae = build(normalize_activations="none")
    x = torch.randn(4, D_IN)
    clean = sae(x)
    x[2, 3] = bad
    out = sae(x)
    assert not out[2].isfinite().any()
    assert torch.equal(out[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(3, D_IN + 1), ValueError, r"d_in = 12.*\[3, 13\]"),
        (torch.tensor(1.0), ValueError, r"d_in = 12.*\[\]"),
        (torch.ones(3, D_IN, dtype=torch.int64), TypeError, "int64"),
    ],
)
@pytest.mark.parametrize("call", ["encode", "forward", "training_forward_pass"])
def test_a_wrong_input_is_one_clear_error(x, error, message, call):
    sae = build()
    with pytest.raises(error, match=message):
        step(sae, x) if call == "training_forward_pass" else getattr(sae, call)(x)


def test_d_sae_of_one_works(tmp_path):
    sae = build(d_sae=1)
    out = step(sae, torch.randn(6, D_IN), torch.ones(1, dtype=torch.bool), logging=True)
    out.loss.backward()
    assert out.feature_acts.shape == (6, 1)
    assert to_inference(sae, tmp_path)(torch.randn(2, D_IN)).shape == (2, D_IN)


def test_hooks_fire_where_saelens_has_them():
    sae = build()
    names = [f"hook_sae_{n}" for n in ("input", "acts_pre", "acts_post", "recons", "output")]
    x = torch.randn(3, D_IN)
    _, cache = sae.run_with_cache(x)
    assert set(names) <= set(cache)
    assert torch.equal(cache["hook_sae_input"], x)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))
    seen = []
    sae.add_hook("hook_sae_acts_post", lambda acts, hook: seen.append(acts.shape))
    step(sae, x)
    assert seen == [(3, D_SAE)]


def test_hooks_can_change_activations():
    sae = build()
    x = torch.randn(3, D_IN)
    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))])
    bias_only = sae.b_dec * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
    torch.testing.assert_close(out, bias_only)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_hook_z_is_reshaped_back(tmp_path, shape):
    cfg = TopAFASAEConfig(d_in=20, d_sae=30, reshape_activations="hook_z", normalize_activations="layer_norm")
    cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae = TopAFASAE(cfg)
    x = torch.randn(*shape[:-1], 4, 5)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (*shape[:-1], 30)
    with pytest.raises(ValueError, match=r"heads \* d_head = d_in = 20"):
        sae.encode(torch.randn(3, 3, 5))


# ---- loss


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("detach", [True, False])
def test_losses_are_their_definitions(normalize, detach):
    sae = build(normalize_activations=normalize, loss_reduction="mean", k_aux=3, detach_aux_residual=detach)
    sae.W_enc.data *= 5  # so strong that not all are needed,
    sae.W_enc.data[:, ::3] *= 1e-3  # and a third too weak to be selected
    x = torch.randn(9, D_IN)
    dead = torch.arange(D_SAE) % 3 == 0
    out = step(sae, x, dead, afa=0.25)
    z = sae.run_time_activation_norm_fn_in(x)
    recons = out.feature_acts @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(out.losses["mse_loss"], (recons - z).square().mean())
    torch.testing.assert_close(out.losses["afa_loss"], 0.25 * afa_loss(out.feature_acts, z))
    truly_dead = dead & ~(out.feature_acts > 0).any(0)
    aux = torch.zeros(out.feature_acts.shape)
    for r, acts in enumerate(out.hidden_pre.detach().relu()):
        top = torch.where(truly_dead, acts, -1).topk(3).indices
        aux[r, top] = acts[top]
    expected = (aux @ sae.W_dec - (z - recons)).square().mean() / 32
    assert truly_dead.sum() > 3
    torch.testing.assert_close(out.losses["auxiliary_reconstruction_loss"], expected)
    torch.testing.assert_close(out.loss, torch.stack(list(out.losses.values())).sum())


def test_a_latent_that_fires_in_this_batch_is_not_dead():
    sae = build()
    out = step(sae, torch.randn(400, D_IN), torch.ones(D_SAE, dtype=torch.bool))
    assert (out.feature_acts > 0).any(0).all()
    assert out.losses["auxiliary_reconstruction_loss"] == 0


def test_dead_latents_get_a_gradient_from_the_auxiliary_loss():
    sae = build()
    x = torch.randn(30, D_IN)
    sae.W_enc.data *= 5  # so strong that not all are needed,
    sae.W_enc.data[:, :5] *= 1e-4  # and these too weak to be selected
    dead = torch.arange(D_SAE) < 5
    assert (step(sae, x).feature_acts[:, :5] == 0).all()
    with_dead = step(sae, x, dead)
    assert with_dead.losses["auxiliary_reconstruction_loss"] > 0
    with_dead.loss.backward()
    assert (sae.W_enc.grad[:, :5] != 0).any()


def test_sum_is_d_in_times_mean_with_the_same_coefficients():
    torch.manual_seed(1)
    mean = build(loss_reduction="mean")
    total = build(loss_reduction="sum")
    total.load_state_dict(mean.state_dict())
    x, dead = torch.randn(9, D_IN), torch.ones(D_SAE, dtype=torch.bool)
    a, b = step(mean, x, dead), step(total, x, dead)
    for name in a.losses:
        torch.testing.assert_close(b.losses[name], D_IN * a.losses[name])
    assert mean.get_coefficients() == total.get_coefficients()


def test_gradients_pass_gradcheck():
    sae = build(dtype="float64", loss_reduction="mean", detach_aux_residual=False)
    x = torch.randn(5, D_IN, dtype=torch.float64)
    dead = torch.arange(D_SAE) % 2 == 0

    def loss(W_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        return torch.func.functional_call(
            _LossOnly(sae, dead), {"sae.W_enc": W_enc, "sae.W_dec": W_dec, "sae.b_dec": b_dec}, x
        )

    parameters = tuple(p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.W_dec, sae.b_dec))
    assert torch.autograd.gradcheck(loss, parameters)


class _LossOnly(torch.nn.Module):
    def __init__(self, sae: TopAFATrainingSAE, dead: Tensor) -> None:
        super().__init__()
        self.sae, self.dead = sae, dead

    def forward(self, x: Tensor) -> Tensor:
        return step(self.sae, x, self.dead).loss


def test_metrics_come_on_logging_steps_only():
    sae = build()
    x = torch.randn(50, D_IN)
    assert step(sae, x).metrics == {}
    metrics = step(sae, x, logging=True).metrics
    assert set(metrics) == {"afa_norm_ratio", "afa_epsilon_lbo", "afa_frac_over_activated", "l0_std"}
    acts, z = sae.encode(x), sae.run_time_activation_norm_fn_in(x)
    f = torch.cat([acts * sae.W_dec.norm(dim=-1), sae.b_dec.norm().expand(50, 1)], dim=-1).norm(dim=-1)
    torch.testing.assert_close(metrics["afa_norm_ratio"], (f / z.norm(dim=-1)).median())
    torch.testing.assert_close(metrics["afa_frac_over_activated"], (f > z.norm(dim=-1)).float().mean())
    torch.testing.assert_close(metrics["l0_std"], (acts > 0).sum(-1).float().std(correction=0))


# ---- decoder constraint


def test_a_fresh_sae_has_raw_gradients_and_its_rows_are_left_alone():
    sae = build()
    sae.W_dec.data *= 1.7
    before = sae.W_dec.detach().clone()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    assert torch.equal(sae.W_dec, before)
    assert ((sae.W_dec.grad * sae.W_dec).sum(-1).abs() > 1e-6).any()


def test_training_keeps_decoder_rows_at_norm_one_and_gradients_tangent():
    sae = build().train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
    train(sae, torch.randn(30, D_IN), 3, optimizer)
    out = step(sae, torch.randn(30, D_IN))
    out.loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    # Tangent to float32: 1e-6 of the gradient's own size.
    assert ((sae.W_dec.grad * sae.W_dec).sum(-1).abs() <= 1e-5 * sae.W_dec.grad.norm()).all()


def test_zero_rows_stay_zero():
    sae = build()
    sae.W_dec.data[4] = 0
    encoder = sae.W_enc.detach().clone()
    sae.train()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    assert (sae.W_dec[4] == 0).all()
    assert torch.equal(sae.W_enc[:, 4], encoder[:, 4])
    assert sae.W_dec.isfinite().all()


@pytest.mark.parametrize("factor", [0.13, 1.004, 7.0])
def test_a_folded_sae_is_renormalised_without_changing_its_outputs(factor):
    sae = build(normalize_activations="expected_average_only_in")
    sae.fold_activation_norm_scaling_factor(factor)
    x = torch.randn(20, D_IN)
    before = sae(x)
    sae.train()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(sae(x), before)


def test_switching_to_eval_and_back_does_not_change_training():
    sae = build().train()
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    train(sae, torch.randn(30, D_IN), 1, optimizer)
    before = sae.W_dec.detach().clone()
    sae.eval()
    sae.train()
    assert torch.equal(sae.W_dec, before)


def test_outside_training_mode_nothing_is_constrained():
    sae = build().train().eval()
    sae.W_dec.data *= 2
    step(sae, torch.randn(9, D_IN)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), 2 * torch.ones(D_SAE))


def test_the_constraint_survives_a_copy():
    sae = copy.deepcopy(build().train()).train()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    assert ((sae.W_dec.grad * sae.W_dec).sum(-1).abs() <= 1e-5 * sae.W_dec.grad.norm()).all()


def test_the_constraint_survives_assigned_weights():
    sae = build().train()
    sae.load_state_dict({k: v.clone() * 3 for k, v in sae.state_dict().items()}, assign=True)
    sae.train()
    step(sae, torch.randn(9, D_IN)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_the_constraint_can_be_left_out():
    sae = build(unit_norm_decoder=False).train()
    sae.W_dec.data *= 2
    step(sae, torch.randn(9, D_IN)).loss.backward()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), 2 * torch.ones(D_SAE))


def test_a_checkpoint_continues_exactly(tmp_path):
    torch.manual_seed(3)
    x = torch.randn(40, D_IN)
    whole = build()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    train(whole, x, 4, optimizer)
    whole.save_model(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    train(whole, x, 4, optimizer)
    resumed = build()
    other = torch.optim.Adam(resumed.parameters(), lr=0.01)
    other.load_state_dict(saved)
    resumed.load_weights_from_checkpoint(tmp_path)
    train(resumed, x, 4, other)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


# ---- initialisation, saving, folding


def test_initialisation_is_the_reference_s():
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=64, d_sae=600))
    assert sae.W_enc.abs().max() <= 0.1
    assert sae.W_enc.abs().max() > 0.0999
    torch.testing.assert_close(sae.W_dec, torch.nn.functional.normalize(sae.W_enc.T, dim=-1))
    assert (sae.b_dec == 0).all()
    assert set(dict(sae.named_parameters())) == {"W_enc", "W_dec", "b_dec"}


def test_decoder_init_norm_is_saelens_heuristic():
    sae = build(decoder_init_norm=0.1)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((D_SAE,), 0.1))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_inference_model_has_the_same_outputs(tmp_path, normalize, dtype):
    sae = build(normalize_activations=normalize, dtype=dtype)
    loaded = to_inference(sae, tmp_path)
    assert isinstance(loaded, TopAFASAE)
    assert loaded.dtype == sae.dtype
    x = torch.randn(3, 5, D_IN)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded(x), sae(x))


def test_a_training_checkpoint_round_trips(tmp_path):
    sae = build(afa_coefficient=1 / 64)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert isinstance(loaded, TopAFATrainingSAE)
    assert loaded.cfg.to_dict() == sae.cfg.to_dict()
    x = torch.randn(5, D_IN)
    assert torch.equal(loaded(x), sae(x))


def test_how_it_was_trained_is_in_the_saved_metadata(tmp_path):
    loaded = to_inference(build(afa_coefficient=1 / 64), tmp_path)
    assert loaded.cfg.metadata.training_architecture == "top_afa"
    assert loaded.cfg.metadata.training_architecture_details["afa_coefficient"] == 1 / 64


@pytest.mark.parametrize("change", ["d_sae", "missing", "unknown"])
def test_weights_that_disagree_with_the_config_name_the_tensor(tmp_path, change):
    sae = build()
    if change == "unknown":
        sae.register_buffer("extra", torch.zeros(1))
    if change == "missing":
        sae.process_state_dict_for_saving_inference = lambda state_dict: state_dict.pop("W_dec")
    sae.save_inference_model(tmp_path)
    if change == "d_sae":
        cfg = json.loads((tmp_path / "cfg.json").read_text())
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"d_sae": D_SAE + 1}))
    message = {
        "d_sae": r"W_enc has shape \[12, 40\].*asks for \[12, 41\]",
        "missing": "no tensor 'W_dec'",
        "unknown": r"hold \['extra'\]",
    }
    with pytest.raises(ValueError, match=message[change]):
        SAE.load_from_disk(tmp_path)


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_folding_decoder_norms_changes_no_output(tmp_path, kind):
    sae = build(normalize_activations="none")
    sae.W_dec.data *= torch.rand(D_SAE, 1) + 0.5
    sae.W_dec.data[3] = 0
    sae = sae if kind == "training" else to_inference(sae, tmp_path)
    x = torch.randn(20, D_IN)
    before, active = sae(x), sae.encode(x) > 0
    sae.fold_W_dec_norm()
    assert torch.equal(sae.encode(x) > 0, active)
    torch.testing.assert_close(sae(x), before)


@pytest.mark.parametrize("factor", [0.25, 3.7])
def test_folding_the_activation_scale_changes_no_output(factor):
    sae = build(normalize_activations="expected_average_only_in")
    x = torch.randn(20, D_IN)
    before, active = sae(factor * x) / factor, sae.encode(factor * x) > 0
    sae.fold_activation_norm_scaling_factor(factor)
    assert torch.equal(sae.encode(x) > 0, active)
    torch.testing.assert_close(sae(x), before)


def test_whitening_cannot_be_folded():
    with pytest.raises(NotImplementedError, match="top_afa cannot absorb a whitening"):
        build().fold_activation_whitening(torch.zeros(D_IN), torch.eye(D_IN), torch.eye(D_IN))


# ---- precision and compilation


def test_under_autocast_the_selection_is_that_of_float32():
    sae = build(normalize_activations="none")
    x = torch.randn(20, D_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = step(sae, x, torch.ones(D_SAE, dtype=torch.bool))
        out.loss.backward()
    expected, near_tie = reference.norm_matching_topk(
        out.hidden_pre.detach(), (x - sae.b_dec).double().norm(dim=-1), sae.W_dec.detach().norm(dim=-1)
    )
    assert out.hidden_pre.dtype == torch.bfloat16
    assert ((out.feature_acts == expected).all(-1) | near_tie).all()
    assert out.loss.dtype == torch.float32


def test_a_compiled_step_is_the_same_step():
    sae = build().train()
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager")
    dead = torch.arange(D_SAE) % 3 == 0
    x = torch.randn(20, D_IN)
    plain = step(sae, x, dead)
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    out = compiled(
        TrainStepInput(
            sae_in=x, coefficients={"afa": 1 / 32}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )
    out.loss.backward()
    assert torch.equal(out.feature_acts, plain.feature_acts)
    for name, p in sae.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
