"""Checkpoints of the reference implementation: the same outputs, and everything else refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopK
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.topk_sae import TopKSAE
from safetensors import safe_open
from torch import Tensor

from sae_lens_afa import TopAFASAE
from sae_lens_afa.interop import convert_reference_checkpoint, jumprelu_report

DATA = Path(__file__).parents[1] / "data"
TOPAFA = sorted(p.stem for p in DATA.glob("fwd_topafa_*") if "edge" not in p.stem)
EDGE = sorted(p.stem for p in DATA.glob("fwd_topafa_edge*"))
TOPK, BATCHTOPK = "fwd_topk_unit_dead", "fwd_batchtopk_raw_dead"
PARAMETERS = ("W_enc", "W_dec", "b_dec", "b_enc")


def checkpoint(folder: Path, name: str, *, drop: str | None = None, weights=None, **changes) -> dict[str, Tensor]:
    """Write what the reference's training code would have left of a case of the reference data."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**config, **changes}.items() if key != drop}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({**{key: tensors[key] for key in PARAMETERS}, **(weights or {})}, folder / "sae.pt")
    return tensors


def converted(tmp_path: Path, name: str, **options) -> tuple[SAE, dict[str, Tensor]]:
    tensors = checkpoint(tmp_path / "in", name)
    return SAE.load_from_disk(convert_reference_checkpoint(tmp_path / "in", tmp_path / "out", **options)), tensors


def assert_close(found: Tensor, expected: Tensor, rel: float) -> None:
    """Within `rel` of the largest entry of what is expected."""
    assert (found - expected).abs().max() <= rel * expected.abs().max()


# ---- the same outputs


@pytest.mark.parametrize("name", TOPAFA)
def test_topafa_becomes_top_afa_with_the_same_outputs(tmp_path, name):
    sae, t = converted(tmp_path, name)
    assert isinstance(sae, TopAFASAE)
    acts = sae.encode(t["x"])
    unsaturated = t["margin_tail_per_row"] > 1e-6  # elsewhere float32 sums lose tail features (METHODS, section 2)
    assert torch.equal(acts[unsaturated], t["out.feature_acts"][unsaturated])
    assert_close(sae(t["x"])[unsaturated], t["out.sae_out"][unsaturated], 1e-5)
    assert_close(sae(t["x"]), t["out.sae_out"], 1e-3)


@pytest.mark.parametrize("name", EDGE)
def test_the_reference_s_artefact_is_not_copied(tmp_path, name):
    sae, t = converted(tmp_path, name)
    differs = (sae.encode(t["x"]) != t["out.feature_acts"]).any(-1)
    assert differs.nonzero().flatten().tolist() == list(range(8))  # the rows in which all features are positive
    assert_close(sae(t["x"])[8:], t["out.sae_out"][8:], 1e-5)


def test_an_encoder_bias_is_left_out_as_the_reference_leaves_it_out(tmp_path):
    sae, t = converted(tmp_path, TOPK)
    checkpoint(tmp_path / "biased", TOPK, weights={"b_enc": torch.ones(256)})
    with pytest.warns(UserWarning, match=r"b_enc is not zero. The reference implementation never uses it"):
        biased = SAE.load_from_disk(convert_reference_checkpoint(tmp_path / "biased", tmp_path / "biased-out"))
    assert torch.equal(biased.encode(t["x"]), sae.encode(t["x"]))


def test_topk_becomes_topk_with_the_same_outputs(tmp_path):
    sae, t = converted(tmp_path, TOPK)
    assert isinstance(sae, TopKSAE)
    assert sae.cfg.k == 12
    assert not sae.cfg.rescale_acts_by_decoder_norm
    assert not sae.b_enc.any()
    acts = sae.encode(t["x"])
    assert torch.equal(acts > 0, t["out.feature_acts"] > 0)
    assert_close(acts, t["out.feature_acts"], 1e-6)
    assert_close(sae(t["x"]), t["out.sae_out"], 1e-5)


def test_batchtopk_calibrated_on_its_own_batch_has_the_same_outputs(tmp_path):
    t = checkpoint(tmp_path / "again", BATCHTOPK)
    sae, _ = converted(tmp_path, BATCHTOPK, activations=t["x"])
    assert isinstance(sae, JumpReLUSAE)
    acts = sae.encode(t["x"])
    assert torch.equal(acts > 0, t["out.feature_acts"] > 0)
    assert_close(acts, t["out.feature_acts"], 1e-6)
    assert_close(sae(t["x"]), t["out.sae_out"], 1e-5)
    report = jumprelu_report(sae)
    assert (report.original_architecture, report.thresholds, report.jaccard) == ("batchtopk", "global", 1)
    assert not report.held_out
    assert "one fixed threshold stands for the choice" in report.note


def test_batchtopk_s_threshold_is_the_mean_cut_of_the_training_s_batches(tmp_path):
    t = checkpoint(tmp_path / "in", BATCHTOPK, batch_size=50)
    x = torch.cat([t["x"] * s for s in torch.linspace(0.5, 1.5, 20)])[torch.randperm(1280)]
    folder = convert_reference_checkpoint(tmp_path / "in", tmp_path / "out", activations=x.split(33))
    sae = SAE.load_from_disk(folder)
    rows = x[torch.arange(1280) // 128 % 5 != 4]
    total = 0.0
    for batch in rows.split(50):
        acts = ((batch - t["b_dec"]) @ t["W_enc"]).relu()
        ordered = acts.flatten().sort(descending=True).values
        total += float(ordered[12 * len(batch) - 1] + ordered[12 * len(batch)]) / 2 * len(batch)
    torch.testing.assert_close(sae.threshold, torch.full_like(sae.threshold, total / len(rows)))
    report = jumprelu_report(sae)
    assert (report.n_calibration_tokens, report.n_evaluation_tokens, report.held_out) == (1024, 256, True)
    # The original selects among the 50 tokens of a batch, as its training did.
    held_out = x[torch.arange(1280) // 128 % 5 == 4]
    theirs = torch.cat([BatchTopK(12)((b - t["b_dec"]) @ t["W_enc"]) > 0 for b in held_out.split(50)])
    ours = sae.encode(held_out) > 0
    assert report.l0_original == pytest.approx(12, abs=0.01)
    assert report.l0_export == pytest.approx(float(ours.sum(-1).float().mean()))
    assert report.precision == pytest.approx(float((ours & theirs).sum() / ours.sum()))


def test_batchtopk_that_never_reaches_k_keeps_every_positive_feature(tmp_path):
    t = checkpoint(tmp_path / "in", BATCHTOPK, top_k=256)
    folder = convert_reference_checkpoint(tmp_path / "in", tmp_path / "out", activations=t["x"])
    assert (SAE.load_from_disk(folder).threshold == 0).all()
    nothing = {"W_enc": torch.zeros_like(t["W_enc"])}
    t = checkpoint(tmp_path / "in", BATCHTOPK, weights=nothing)
    convert_reference_checkpoint(tmp_path / "in", tmp_path / "out", activations=t["x"], overwrite=True)
    assert jumprelu_report(SAE.load_from_disk(tmp_path / "out")).l0_export == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype_whatever_the_config_calls_it(tmp_path, dtype):
    t = checkpoint(tmp_path / "in", TOPAFA[0])
    weights = {name: t[name].to(dtype) for name in PARAMETERS}
    checkpoint(tmp_path / "in", TOPAFA[0], weights=weights, dtype="torch.float16", device="cuda:3")
    sae = SAE.load_from_disk(convert_reference_checkpoint(tmp_path / "in", tmp_path / "out"))
    assert sae.dtype == dtype
    assert torch.equal(sae.W_dec, weights["W_dec"])


def test_metadata_says_where_it_comes_from_and_nothing_private(tmp_path):
    sae, _ = converted(tmp_path, TOPAFA[0])
    metadata = sae.cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("gpt2-small", "blocks.8.hook_resid_pre")
    assert (metadata.context_size, metadata.dataset_path) == (128, "Skylion007/openwebtext")
    assert metadata.training_architecture == "top_afa"
    assert metadata.training_architecture_details["loss_reduction"] == "mean"
    assert metadata.reference_config["sae_type"] == "topafa"
    assert metadata.reference_config["lr"] == 3e-4
    assert not {"wandb_project", "device", "name"} & set(metadata.reference_config)
    assert sae.cfg.normalize_activations == "layer_norm"


def test_heads_are_joined_where_the_hook_gives_heads(tmp_path):
    t = checkpoint(tmp_path / "in", TOPAFA[0], hook_point="blocks.8.attn.hook_z")
    sae = SAE.load_from_disk(convert_reference_checkpoint(tmp_path / "in", tmp_path / "out"))
    out = sae(t["x"].reshape(-1, 4, 8))
    assert out.shape == (64, 4, 8)
    unsaturated = t["margin_tail_per_row"] > 1e-6
    assert_close(out.flatten(1)[unsaturated], t["out.sae_out"][unsaturated], 1e-5)


def test_fields_that_are_not_needed_may_be_missing(tmp_path):
    checkpoint(tmp_path / "in", TOPK)
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    kept = ("act_size", "dict_size", "sae_type", "input_unit_norm", "hook_point", "model_name", "top_k")
    (tmp_path / "in" / "config.json").write_text(json.dumps({name: config[name] for name in kept}))
    sae = SAE.load_from_disk(convert_reference_checkpoint(str(tmp_path / "in"), str(tmp_path / "out")))
    assert "context_size" not in sae.cfg.metadata
    assert set(sae.cfg.metadata.reference_config) == {"sae_type", "input_unit_norm", "top_k"}


def test_training_settings_that_json_cannot_hold_are_not_passed_on(tmp_path):
    checkpoint(tmp_path / "in", TOPK, lr=float("nan"), beta1=[0.9], seed=7)
    sae = SAE.load_from_disk(convert_reference_checkpoint(tmp_path / "in", tmp_path / "out"))
    assert sae.cfg.metadata.reference_config["seed"] == 7
    assert not {"lr", "beta1"} & set(sae.cfg.metadata.reference_config)


# ---- refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": "act_size"}, r"config\.json has no act_size; it needs act_size, dict_size, sae_type"),
        ({"sae_type": "vanilla"}, "sae_type must be one of topafa, topk, batchtopk, got 'vanilla'"),
        ({"sae_type": ["topk"]}, r"sae_type must be one of .*, got \['topk'\]"),
        ({"act_size": "32"}, "act_size must be an integer >= 1, got '32'"),
        ({"dict_size": True}, "dict_size must be an integer >= 1, got True"),
        ({"dict_size": 255}, r"W_enc has shape \[32, 256\], but config\.json .* asks for \[32, 255\]"),
        ({"act_size": 10**9}, r"W_enc has shape \[32, 256\], but"),
        ({"sae_type": "topk"}, "top_k must be an integer >= 1, got 0"),
        ({"sae_type": "topk", "top_k": 257}, "top_k must be at most dict_size = 256, got 257"),
        (
            {"sae_type": "batchtopk", "top_k": 4, "drop": "batch_size"},
            "no batch_size, which a batchtopk checkpoint needs",
        ),
        ({"drop": "afa_coeff"}, r"config\.json has no afa_coeff, which a topafa checkpoint needs"),
        ({"hook_point": ""}, "hook_point must be a name, got ''"),
        ({"model_name": 3}, "model_name must be a name, got 3"),
        ({"input_unit_norm": 1}, "input_unit_norm must be true or false, got 1"),
        ({"afa_coeff": "1/32"}, "afa_coeff must be a number >= 0, got '1/32'"),
        ({"afa_coeff": float("nan")}, "afa_coeff must be a number >= 0, got nan"),
        ({"top_k_aux": 0}, "top_k_aux must be an integer >= 1, got 0"),
    ],
)
def test_a_config_that_cannot_be_right_is_named(tmp_path, changes, message):
    checkpoint(tmp_path / "in", TOPAFA[0], **changes)
    refused(tmp_path, message)


def refused(tmp_path: Path, message: str, error=ValueError, **options) -> None:
    with pytest.raises(error, match=message) as raised:
        convert_reference_checkpoint(tmp_path / "in", tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"threshold": torch.zeros(256)}, "sae.pt holds threshold too"),
        ({"W_dec": torch.zeros(32, 256)}, r"W_dec has shape \[32, 256\], but config\.json .* asks for \[256, 32\]"),
        ({"b_dec": torch.full((32,), torch.nan)}, "b_dec holds 32 NaN or infinite values"),
        (
            {"b_dec": torch.zeros(32, dtype=torch.int64)},
            r"must be a dense floating-point tensor, got torch.int64",
        ),
        ({"b_dec": torch.zeros(32).to_sparse()}, "b_dec must be a dense floating-point tensor"),
        ({"b_dec": [0.0] * 32}, "b_dec must be a dense floating-point tensor, got list"),
        ({"b_dec": torch.zeros(32).half()}, r"of one dtype, got \['torch.float16', 'torch.float32'\]"),
        ({"b_dec": torch.zeros(1).expand(32)}, "b_dec claims shape .*, but the file does not hold so many numbers"),
        ({"b_dec": torch.zeros(32, device="meta")}, "b_dec claims shape"),
    ],
)
def test_tensors_that_do_not_belong_are_named(tmp_path, weights, message):
    checkpoint(tmp_path / "in", TOPAFA[0], weights=weights)
    refused(tmp_path, message)


def test_missing_tensors_are_named(tmp_path):
    t = checkpoint(tmp_path / "in", TOPAFA[0])
    torch.save({"W_enc": t["W_enc"], "b_dec": t["b_dec"]}, tmp_path / "in" / "sae.pt")
    refused(tmp_path, "sae.pt has no W_dec, b_enc; it must hold W_enc, W_dec, b_dec, b_enc")
    torch.save(list(t.values()), tmp_path / "in" / "sae.pt")
    refused(tmp_path, "must hold a state dict, got a list")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    checkpoint(tmp_path / "in", TOPAFA[0])
    torch.save({"W_enc": Malicious(tmp_path / "ran")}, tmp_path / "in" / "sae.pt")
    refused(tmp_path, "sae.pt is damaged or holds more than tensors .* it is not loaded")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    checkpoint(tmp_path / "in", TOPAFA[0])
    whole = (tmp_path / "in" / "sae.pt").read_bytes()
    (tmp_path / "in" / "sae.pt").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    refused(tmp_path, "sae.pt is damaged")


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_config_that_is_not_json_is_refused(tmp_path, text):
    checkpoint(tmp_path / "in", TOPAFA[0])
    (tmp_path / "in" / "config.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "config.json is not JSON")
    (tmp_path / "in" / "config.json").write_text("[]")
    refused(tmp_path, "must hold an object of settings, got a list")


def test_missing_files_are_named(tmp_path):
    refused(tmp_path, "in is not a folder; give one with sae.pt and config.json", FileNotFoundError)
    (tmp_path / "in").mkdir()
    refused(tmp_path, "has no sae.pt and no config.json", FileNotFoundError)
    (tmp_path / "in" / "config.json").write_text("{}")
    refused(tmp_path, "has no sae.pt;", FileNotFoundError)


def test_batchtopk_asks_for_activations_and_the_others_refuse_them(tmp_path):
    t = checkpoint(tmp_path / "in", BATCHTOPK)
    refused(tmp_path, r"pass activations \(raw values at blocks\.8\.hook_resid_pre, \[tokens, 32\]")
    refused(tmp_path, "too few activations: 63 tokens", activations=t["x"][:63])
    checkpoint(tmp_path / "in", TOPK)
    refused(tmp_path, "a topk SAE is converted as it is: leave out activations", activations=t["x"])


# ---- what is written


def test_an_existing_folder_is_replaced_only_on_request_and_as_a_whole(tmp_path):
    checkpoint(tmp_path / "in", TOPAFA[0])
    out = convert_reference_checkpoint(tmp_path / "in", tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        convert_reference_checkpoint(tmp_path / "in", out)
    (out / "sparsity.safetensors").write_text("of the old SAE")
    checkpoint(tmp_path / "in", TOPK)
    convert_reference_checkpoint(tmp_path / "in", out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    assert SAE.load_from_disk(out).cfg.architecture() == "topk"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    checkpoint(tmp_path / "in", TOPAFA[0])
    with pytest.raises(FileExistsError, match="is not the folder of an SAE"):
        convert_reference_checkpoint(tmp_path / "in", tmp_path / "in", overwrite=True)
    (tmp_path / "empty").mkdir()
    convert_reference_checkpoint(tmp_path / "in", tmp_path / "empty", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="not a writable folder"):
        convert_reference_checkpoint(tmp_path / "in", tmp_path / "file" / "out")


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_failure_leaves_the_old_sae(tmp_path, monkeypatch, step):
    checkpoint(tmp_path / "in", TOPAFA[0])
    out = convert_reference_checkpoint(tmp_path / "in", tmp_path / "out")
    before = {path: path.read_bytes() for path in out.iterdir()}

    if step == "write":
        monkeypatch.setattr(
            "sae_lens.saes.sae.json.dump", lambda *args, **options: (_ for _ in ()).throw(OSError("full"))
        )
    else:
        rename = Path.rename

        def fail(self, target):
            if self.name.endswith(".partial"):
                raise OSError("full")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="full"):
        convert_reference_checkpoint(tmp_path / "in", out, overwrite=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
