"""What holds the package together: installation, import, registration, and the SAELens it is written for."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sae_lens
from packaging.requirements import Requirement
from packaging.version import Version
from sae_lens import llm_sae_training_runner, registry
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

import sae_lens_afa
from sae_lens_afa.saes import register_architectures

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(name: str) -> str:
    return re.search(rf"(?m)^{re.escape(name)}==(\S+)$", (ROOT / "constraints.txt").read_text()).group(1)


# ---- SAELens


def test_supported_saelens_versions():
    requirement = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "sae-lens")
    assert str(requirement.specifier) == "<7,>=6.54"
    assert requirement.specifier.contains(pinned("sae-lens")), "constraints.txt pins an unsupported SAELens"
    assert requirement.specifier.contains(sae_lens.__version__), (
        f"SAELens {sae_lens.__version__} is installed; sae-lens-afa is written for {requirement.specifier}"
    )
    assert Version(pinned("sae-lens")) >= Version("6.54.12")


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (SAE, "process_sae_in", ["self", "sae_in"]),
        (SAE, "process_state_dict_for_loading", ["self", "state_dict"]),
        (SAE, "fold_activation_whitening", ["self", "mean", "whitening_matrix", "unwhitening_matrix"]),
        (TrainingSAE, "get_coefficients", ["self"]),
        (TrainingSAE, "encode_with_hidden_pre", ["self", "x"]),
        (TrainingSAE, "training_forward_pass", ["self", "step_input"]),
        (TrainingSAE, "calculate_aux_loss", ["self", "step_input", "feature_acts", "hidden_pre", "sae_out"]),
        (TrainingSAE, "load_weights_from_checkpoint", ["self", "checkpoint_path"]),
        (SAETrainer, "maybe_reset_sparsity", ["self"]),
        (SAETrainer, "save_checkpoint", ["self", "checkpoint_name", "base_path", "wandb_aliases"]),
        (
            llm_sae_training_runner.LanguageModelSAETrainingRunner,
            "run_trainer_with_interruption_handling",
            ["self", "trainer"],
        ),
        (
            llm_sae_training_runner.LanguageModelSAETrainingRunner,
            "save_final_sae",
            ["self", "sae", "output_path", "log_feature_sparsity"],
        ),
        (llm_sae_training_runner, "_parse_cfg_args", ["args"]),
        (registry, "register_sae_class", ["architecture", "sae_class", "sae_config_class"]),
    ],
)
def test_what_we_rely_on_in_saelens_is_as_it_was(owner, name, parameters):
    where = f"{owner.__name__}.{name} of SAELens {sae_lens.__version__}"
    assert hasattr(owner, name), f"{where} is gone; sae-lens-afa overrides or calls it"
    found = list(inspect.signature(getattr(owner, name)).parameters)
    assert found == parameters, f"{where} has changed its parameters; sae-lens-afa overrides or calls it"


def test_the_trainer_asks_for_the_sparsity_window_before_it_takes_a_batch():
    # What InterruptibleTrainingRunner relies on to stop between two steps.
    source = inspect.getsource(SAETrainer.fit)
    assert source.index("self.maybe_reset_sparsity()") < source.index("next(self.data_provider)")


# ---- import and registration


def test_importing_registers_the_architectures():
    assert registry.get_sae_class("top_afa") == (sae_lens_afa.TopAFASAE, sae_lens_afa.TopAFASAEConfig)
    classes = (sae_lens_afa.AFAThresholdSAE, sae_lens_afa.AFAThresholdSAEConfig)
    assert registry.get_sae_class("afa_threshold") == classes
    for name, prefix in (
        ("top_afa", "TopAFA"),
        ("afa_threshold", "AFAThreshold"),
        ("mutual_choice", "MutualChoice"),
        ("feature_choice", "FeatureChoice"),
    ):
        classes = tuple(getattr(sae_lens_afa, f"{prefix}TrainingSAE{suffix}") for suffix in ("", "Config"))
        assert registry.get_sae_training_class(name) == classes
        assert classes[1].architecture() == name


def test_registering_again_is_no_error():
    before = registry.get_sae_class("top_afa")
    register_architectures()
    importlib.reload(sae_lens_afa)
    assert registry.get_sae_class("top_afa") == before


def test_a_second_import_puts_the_new_classes_in_place():
    script = """
import sys, sae_lens_afa
from sae_lens.registry import get_sae_class
first = get_sae_class("top_afa")[0]
for name in [m for m in sys.modules if m.partition(".")[0] == "sae_lens_afa"]:
    del sys.modules[name]
import sae_lens_afa
assert get_sae_class("top_afa")[0] is sae_lens_afa.TopAFASAE is not first
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY"])
def test_a_name_held_by_another_package_is_one_clear_error(monkeypatch, name):
    stranger = type("TopAFASAE", (), {"__module__": "another_plugin.saes"})
    monkeypatch.setitem(getattr(registry, name), "top_afa", (stranger, stranger))
    with pytest.raises(RuntimeError, match=r"'top_afa', registered by another_plugin\.saes"):
        register_architectures()


def test_importing_is_quiet_and_light():
    script = """
import sys, sae_lens
before = set(sys.modules)
import sae_lens_afa
loaded = {m.partition(".")[0] for m in set(sys.modules) - before}
print(sorted(loaded & {"matplotlib", "plotly", "numba", "triton", "IPython"}))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


# ---- installation


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from the tree and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    for command in (
        ["build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        ["pip", "install", "--no-deps", "--no-index", "--find-links", str(folder), "--target", str(folder / "site"),
         "sae-lens-afa"],
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_the_wheel_holds_the_demo(installed):
    script = """
import sae_lens_afa.demo as demo, pathlib
assert pathlib.Path(demo.__file__).is_relative_to(pathlib.Path("site").resolve()), demo.__file__
model = demo.load_model()
loss = model(model.to_tokens(demo.load_text().held_out[0])[:, :128], return_type="loss")
print(float(loss))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=installed.parent,
        env={"PYTHONPATH": str(installed.resolve()), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 4


def test_the_wheel_is_typed_licensed_and_small(installed):
    package = installed / "sae_lens_afa"
    assert (package / "py.typed").is_file()
    assert (package / "demo" / "NOTICE.md").is_file()
    assert (package / "demo/kjv_gpt2/model.safetensors").stat().st_size <= 6 * 2**20
    assert (package / "demo/kjv.txt.xz").stat().st_size <= 2 * 2**20
    assert not [p for p in installed.iterdir() if p.name in ("tests", "benchmarks", "examples")]
    assert list(installed.glob("sae_lens_afa-*.dist-info/licenses/LICENSE"))


def test_the_package_declares_its_command_and_its_plugin():
    points = importlib.metadata.distribution("sae-lens-afa").entry_points
    assert [(p.name, p.value) for p in points.select(group="console_scripts")] == [
        ("sae-lens-afa", "sae_lens_afa.cli:main")
    ]
    names = ("afa_threshold", "feature_choice", "mutual_choice", "top_afa")
    found = sorted((p.name, p.value) for p in points.select(group="sae_lens.architectures"))
    assert found == [(name, "sae_lens_afa") for name in names]
    assert sae_lens_afa.__version__ == PROJECT["version"]


def test_the_changelog_has_an_entry_for_this_version():
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
