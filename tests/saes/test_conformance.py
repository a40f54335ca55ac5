"""What every architecture of the list has to do, asked of all of them."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from small_saes import D_IN, D_SAE, INFERENCE, KINDS, TRAINING, build, config_class, step, to_inference

import sae_lens_afa
from sae_lens_afa.architectures import architecture_named

EVERY = pytest.mark.parametrize("kind", KINDS)
EVERY_TRAINED = pytest.mark.parametrize("name", TRAINING)


# ---- configuration


@EVERY_TRAINED
def test_a_config_round_trips_through_json(name):
    cfg = build(name).cfg
    as_json = json.loads(json.dumps(cfg.to_dict()))
    assert TrainingSAEConfig.from_dict(as_json).to_dict() == cfg.to_dict()
    assert as_json["architecture"] == name
    assert cfg.get_inference_sae_cfg_dict()["architecture"] == (architecture_named(name).saved_as or name)


@EVERY
def test_unknown_fields_of_a_saved_config_are_dropped(kind):
    cfg, base = build(kind).cfg, SAEConfig if kind.startswith("inference") else TrainingSAEConfig
    assert base.from_dict({**cfg.to_dict(), "a_field_of_another_version": 1}).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("top_afa", {"dying_fraction": 0.1, "density_lr": 0.01}),
        (
            "afa_threshold",
            {"aux_loss_coefficient": 1.0, "k_aux": 7, "b_dec_init": "zeros", "unit_norm_decoder": True},
        ),
    ],
)
def test_configs_saved_with_options_that_are_gone_load(name, gone):
    cfg = build(name).cfg
    assert not set(gone) & set(cfg.to_dict())
    assert TrainingSAEConfig.from_dict({**cfg.to_dict(), **gone}).to_dict() == cfg.to_dict()


@EVERY
def test_sizes_below_one_and_layer_norm_of_one_number_name_the_field(kind):
    for field in ("d_in", "d_sae"):
        with pytest.raises(ValueError, match=rf"{config_class(kind).__name__}\.{field} must be an integer >= 1, got 0"):
            build(kind, **{field: 0})
    with pytest.raises(ValueError, match=r"normalize_activations='layer_norm' needs d_in >= 2, got 1.*Give"):
        build(kind, d_in=1, normalize_activations="layer_norm")


# ---- saving and loading


@EVERY_TRAINED
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_inference_model_has_the_same_outputs(tmp_path, name, normalize, dtype):
    sae = build(name, normalize_activations=normalize, dtype=dtype).eval()
    loaded = to_inference(sae, tmp_path)
    saved_as = architecture_named(name).saved_as or name
    assert type(loaded) is get_sae_class(saved_as)[0]
    assert loaded.dtype == sae.dtype
    x = torch.randn(3, 5, D_IN)
    if saved_as == name:
        assert torch.equal(loaded.encode(x), sae.encode(x))
        assert torch.equal(loaded(x), sae(x))
    elif dtype == "float32":  # norms of decoder rows were folded, which rounds
        torch.testing.assert_close(loaded(x), sae(x), atol=1e-5, rtol=1e-5)
    details = loaded.cfg.metadata.training_architecture_details
    assert loaded.cfg.metadata.training_architecture == name
    assert details
    assert {field: getattr(sae.cfg, field) for field in details} == details


@EVERY_TRAINED
def test_a_training_checkpoint_round_trips(tmp_path, name):
    sae = build(name)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is type(sae)
    assert loaded.cfg.to_dict() == sae.cfg.to_dict()
    x = torch.randn(5, D_IN)
    assert torch.equal(loaded(x), sae(x))


@pytest.mark.parametrize("kind", INFERENCE)
def test_an_inference_model_round_trips_on_any_device_and_in_any_dtype(tmp_path, kind):
    sae = build(kind)
    sae.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path, dtype="float64")
    assert loaded.encode(torch.randn(2, D_IN)).dtype == torch.float64
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float64}


# ---- codes


@EVERY
def test_any_leading_dimensions_give_the_same_codes(kind):
    sae = build(kind).eval()
    x = torch.randn(2, 3, 4, D_IN)
    f = sae.encode(x)
    assert f.shape == (2, 3, 4, D_SAE)
    assert sae(x).shape == x.shape
    torch.testing.assert_close(f.flatten(0, 2), sae.encode(x.flatten(0, 2)))
    assert sae.encode(x[0, 0, 0]).shape == (D_SAE,)
    assert build(kind, normalize_activations="none").eval().encode(torch.zeros(0, D_IN)).shape == (0, D_SAE)


@EVERY
def test_a_code_does_not_depend_on_the_rest_of_the_batch(kind):
    sae, x = build(kind).eval(), torch.randn(20, D_IN)
    together = sae.encode(x)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    assert torch.equal(alone > 0, together > 0)
    torch.testing.assert_close(alone, together)


@EVERY
def test_inputs_in_low_precision_are_encoded_in_the_precision_of_the_sae(kind):
    sae, x = build(kind).eval(), torch.randn(5, D_IN).bfloat16()
    assert sae.encode(x).dtype == torch.float32
    assert torch.equal(sae.encode(x), sae.encode(x.float()))


@EVERY
def test_one_feature_is_enough(tmp_path, kind):
    sae = build(kind, d_sae=1)
    if kind in TRAINING:
        step(sae, torch.randn(6, D_IN), logging=True).loss.backward()
        sae = to_inference(sae, tmp_path)
    assert sae(torch.randn(2, D_IN)).shape == (2, D_IN)


@EVERY
@pytest.mark.parametrize("reader", ["copy", "error term"])
def test_a_copy_is_another_sae_and_an_error_term_restores_the_input(kind, reader):
    sae, x = build(kind).eval(), torch.randn(4, D_IN)
    before = sae(x)
    if reader == "error term":
        sae.use_error_term = True
        torch.testing.assert_close(sae(x), x)
        return
    twin = copy.deepcopy(sae)
    twin.W_enc.data.zero_()
    assert torch.equal(sae(x), before)
    twin.load_state_dict(sae.state_dict())
    assert torch.equal(twin(x), before)


@EVERY
def test_shapes_are_known_without_memory(kind):
    sae = build(kind, device="meta").eval()
    f = sae.encode(torch.empty(3, D_IN, device="meta"))
    assert (f.device.type, f.shape) == ("meta", (3, D_SAE))


# ---- hooks and training steps


@EVERY
def test_hooks_fire_where_saelens_has_them_and_can_change_activations(kind):
    sae, x = build(kind, normalize_activations="none"), torch.randn(8, D_IN)
    _, cache = sae.run_with_cache(x)
    assert {f"hook_sae_{n}" for n in ("input", "acts_pre", "acts_post", "recons", "output")} <= set(cache)
    assert torch.equal(cache["hook_sae_input"], x)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))
    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))])
    torch.testing.assert_close(out, sae.b_dec.expand(8, -1))
    if kind in TRAINING:
        seen = []
        sae.add_hook("hook_sae_acts_post", lambda acts, hook: seen.append(acts.shape))
        step(sae, x)
        assert seen == [(8, D_SAE)]


@EVERY_TRAINED
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_has_finite_losses_that_add_up_and_a_gradient_for_every_parameter(name, dtype):
    sae = build(name, dtype=dtype)
    out = step(sae, torch.randn(20, D_IN).to(sae.dtype))
    torch.testing.assert_close(out.loss, sum(out.losses.values()))
    assert out.losses["mse_loss"] > 0
    assert (out.feature_acts.shape, out.hidden_pre.shape) == ((20, D_SAE), (20, D_SAE))
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in sae.parameters())


# ---- the path from a call to the compiled kernel


def _n_files(path: list[str]) -> int:
    return len(set(path))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "afa" in kind])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_the_way_from_encode_to_the_selection_is_short(kind, backend, monkeypatch):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
    sae, x = build(kind), torch.randn(3, D_IN)
    sae.encode(x)  # what is imported and compiled on first use is so now
    package, paths = str(Path(sae_lens_afa.__file__).parent), []

    def note(frame, event, arg):
        if event != "call":
            return
        files, each = [], frame
        while each is not None:
            if each.f_code.co_filename.startswith(package) and not each.f_code.co_name.startswith("<"):
                files.append(str(Path(each.f_code.co_filename).relative_to(package)))
            each = each.f_back
        paths.append(files[::-1])

    sys.setprofile(note)
    try:
        sae.encode(x)
    finally:
        sys.setprofile(None)
    if backend == "numba":
        path = next(
            p for p in paths if p and p[-1] in ("kernels/select.py", "kernels/threshold.py", "kernels/pursue.py")
        )
    else:  # the first one that is as far as it goes in files
        portable = ("selection/rules.py", "selection/_sorting.py", "selection/_batched_pursuit.py")
        path = max((p for p in paths if p and p[-1] in portable), key=_n_files)
    assert path[0] == ("saes/afa_pursuit_sae.py" if kind.endswith("afa_pursuit") else "saes/_one_pass.py")
    assert len(path) <= 5, path
    assert len(set(path)) <= 4, path
