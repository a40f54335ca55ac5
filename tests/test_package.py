"""The package as a whole: the SAELens it is written for, import and registration, installation."""

from __future__ import annotations

import configparser
import importlib.metadata
import inspect
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sae_lens
import torch
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig, llm_sae_training_runner, registry
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAE, TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

import sae_lens_afa
from sae_lens_afa.architectures import ARCHITECTURES
from sae_lens_afa.saes import register_architectures
from sae_lens_afa.selection._sorting import select_by_sorting

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(name: str) -> str:
    return re.search(rf"(?m)^{re.escape(name)}==(\S+)$", (ROOT / "constraints.txt").read_text()).group(1)


# ---- SAELens


def test_supported_saelens_versions():
    requirement = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "sae-lens")
    assert requirement.specifier.contains(pinned("sae-lens")), "constraints.txt pins an unsupported SAELens"
    assert requirement.specifier.contains(sae_lens.__version__), (
        f"SAELens {sae_lens.__version__} is installed; sae-lens-afa is written for {requirement.specifier}"
    )


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


def test_the_trainer_asks_for_the_sparsity_window_between_two_steps_before_it_takes_a_batch():
    """Where `InterruptibleTrainingRunner` stops a run: no batch is taken that is not trained on."""

    class StoppedError(Exception):
        pass

    class StoppedTrainer(SAETrainer):
        def maybe_reset_sparsity(self):
            if self.n_training_steps == 2:
                raise StoppedError
            return super().maybe_reset_sparsity()

    batches = itertools.count()
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2))
    settings = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=64, device="cpu",
        autocast=False, lr=1e-3, lr_end=1e-3, lr_scheduler_name="constant", lr_warm_up_steps=0, adam_beta1=0.9,
        adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=8, dead_feature_window=10,
        feature_sampling_window=100, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    with pytest.raises(StoppedError):
        StoppedTrainer(settings, sae, (torch.full((8, 4), float(n + 1)) for n in batches)).fit()
    assert next(batches) == 2


# ---- import and registration


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=lambda entry: entry.name)
def test_importing_registers_the_architectures(entry):
    training, config, *inference = (getattr(sae_lens_afa, name) for name in entry.classes)
    assert registry.get_sae_training_class(entry.name) == (training, config)
    assert config.architecture() == entry.name
    saved = config(d_in=4, d_sae=128).get_inference_config_class()
    assert saved.architecture() == (entry.saved_as or entry.name)
    if inference:
        assert registry.get_sae_class(entry.name) == tuple(inference)
        assert saved is inference[1]


def test_registering_again_is_no_error():
    before = registry.get_sae_class("top_afa")
    register_architectures()
    importlib.reload(sae_lens_afa)
    assert registry.get_sae_class("top_afa") == before


def test_importing_is_quiet_and_light_and_registers_in_whatever_order_things_are_imported():
    script = Path(__file__).with_name("import_orders.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("quiet so far\n")
    assert done.stdout == "done\n"


@pytest.mark.parametrize("name", ["SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY"])
def test_a_name_held_by_another_package_is_one_clear_error(monkeypatch, name):
    stranger = type("TopAFASAE", (), {"__module__": "another_plugin.saes"})
    monkeypatch.setitem(getattr(registry, name), "top_afa", (stranger, stranger))
    with pytest.raises(RuntimeError, match=r"'top_afa', registered by another_plugin\.saes"):
        register_architectures()


def test_while_tests_run_the_shapes_of_the_back_ends_are_checked():
    with pytest.raises(TypeCheckError):
        select_by_sorting(torch.ones(2, 4), torch.ones(3), None)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_wheel_declares_the_architectures_of_the_list(installed):
    (declared,) = installed.glob("sae_lens_afa-*.dist-info/entry_points.txt")
    points = configparser.ConfigParser()
    points.read(declared)
    assert dict(points["sae_lens.architectures"]) == {entry.name: "sae_lens_afa" for entry in ARCHITECTURES}


@pytest.mark.slow
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
    found = sorted((p.name, p.value) for p in points.select(group="sae_lens.architectures"))
    assert found == sorted((entry.name, "sae_lens_afa") for entry in ARCHITECTURES), "listed since it was installed?"
    assert sae_lens_afa.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text().splitlines()


def test_the_changelog_has_an_entry_for_this_version():
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_page_on_the_house_names_every_room_and_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "sae_lens_afa"
    rooms = {
        path.name + "/" if path.is_dir() else path.name for path in package.glob("[!_]*") if path.name != "py.typed"
    }
    assert not [room for room in rooms if room not in page]
    named = set(re.findall(r"\b[a-z]\w*/\w+\.py", page)) - {"tests/test_house.py"}
    assert not [path for path in named if not (package / path).is_file()]
