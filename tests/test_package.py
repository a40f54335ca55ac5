"""What holds the package together: installation, import, registration, and the SAELens it is written for."""

from __future__ import annotations

import ast
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


def test_the_architectures_are_registered_in_whatever_order_things_are_imported():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ORDERS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]


# One process for all orders: SAELens' own dependencies, whose import takes seconds, stay loaded.
IMPORT_ORDERS = """
import importlib, importlib.util, sys, threading
import torch, datasets, transformers, transformer_lens

OWN = ("sae_lens", "sae_lens_afa")

def forget(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]

def ours_first():
    import sae_lens_afa
    assert "sae_lens" not in sys.modules
    from sae_lens import SAE

def saelens_first():
    import sae_lens
    before = set(sys.modules)
    import sae_lens_afa
    sae_lens_afa.TopAFASAE
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"matplotlib", "plotly", "numba", "triton", "IPython"}, new

def an_architecture_first():
    from sae_lens_afa.saes import TopAFASAE

def a_module_without_saelens_first():
    import sae_lens_afa.functional
    assert "sae_lens" not in sys.modules
    import sae_lens.registry

def the_runner_as_a_module():
    import sae_lens_afa
    importlib.import_module("sae_lens.llm_sae_training_runner")

def all_names():
    names = {}
    exec("from sae_lens_afa import *", names)
    assert names["TopAFASAE"] is sys.modules["sae_lens_afa"].TopAFASAE

def only_looked_for_first():
    import sae_lens_afa
    assert importlib.util.find_spec("sae_lens").loader.get_source("sae_lens")
    assert "sae_lens" not in sys.modules
    import sae_lens

def reloaded():
    import sae_lens_afa
    importlib.reload(sae_lens_afa)
    assert sum(type(finder).__name__ == "_Finder" for finder in sys.meta_path) == 1
    import sae_lens
    importlib.reload(sae_lens_afa)

def imported_a_second_time():
    import sae_lens_afa
    first = sae_lens_afa.TopAFASAE
    forget("sae_lens_afa")
    import sae_lens_afa
    assert sae_lens_afa.TopAFASAE is not first

def without_saelens_first():
    sys.modules["sae_lens"] = None
    import sae_lens_afa
    for wanted in ("sae_lens", "sae_lens_afa.saes"):
        try:
            importlib.import_module(wanted)
        except ImportError as error:
            assert "sae_lens" in str(error)
        else:
            raise AssertionError("imported")
    del sys.modules["sae_lens"]
    import sae_lens

def two_threads():
    import sae_lens_afa
    from sae_lens_afa import _registration
    other = threading.Thread(target=importlib.import_module, args=["sae_lens_afa.saes"], daemon=True)
    own = _registration._Loader.exec_module

    def execute(self, module):
        # While SAELens is being imported, another thread begins with the architectures, until it has to wait.
        other.start()
        while "sae_lens_afa.saes" not in sys.modules:
            other.join(0.01)
        own(self, module)

    _registration._Loader.exec_module = execute
    import sae_lens.registry
    assert "top_afa" in sae_lens.registry.SAE_CLASS_REGISTRY  # at once, whatever the other thread does
    other.join(60)
    assert not other.is_alive()

for order in (
    ours_first, saelens_first, an_architecture_first, a_module_without_saelens_first, the_runner_as_a_module, all_names,
    only_looked_for_first, reloaded, imported_a_second_time, without_saelens_first, two_threads,
):
    forget(*OWN)
    order()
    registry, ours = sys.modules["sae_lens.registry"], sys.modules["sae_lens_afa"]
    name = order.__name__
    assert registry.get_sae_class("top_afa") == (ours.TopAFASAE, ours.TopAFASAEConfig), name
    assert {"afa_threshold", "mutual_choice", "feature_choice"} <= set(registry.SAE_TRAINING_CLASS_REGISTRY), name
    assert not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path), name
    assert type(sys.modules["sae_lens"].__spec__.loader).__name__ != "_Loader", name
print("done")
"""


@pytest.mark.parametrize("name", ["SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY"])
def test_a_name_held_by_another_package_is_one_clear_error(monkeypatch, name):
    stranger = type("TopAFASAE", (), {"__module__": "another_plugin.saes"})
    monkeypatch.setitem(getattr(registry, name), "top_afa", (stranger, stranger))
    with pytest.raises(RuntimeError, match=r"'top_afa', registered by another_plugin\.saes"):
        register_architectures()


def test_importing_is_quiet_and_light():
    script = """
import sys
import sae_lens_afa as afa
assert "TopAFASAE" in dir(afa) and "experiments" in dir(afa)
from sae_lens_afa.reports.folder import read_report
from sae_lens_afa.plots import zf_plot
heavy = {"torch", "sae_lens", "transformers", "datasets", "matplotlib", "plotly", "pandas", "numba", "triton"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_every_name_is_found_when_it_is_asked_for():
    for name in sae_lens_afa.__all__:
        assert getattr(sae_lens_afa, name) is not None
    for package in (sae_lens_afa.evals, sae_lens_afa.hub, sae_lens_afa.experiments, sae_lens_afa.demo):
        assert set(package.__all__) <= set(dir(package))
        assert all(getattr(package, name) is not None for name in package.__all__)
    assert callable(sae_lens_afa.hub.load)  # and not the module of that name
    assert sae_lens_afa.runner.InterruptibleTrainingRunner
    with pytest.raises(AttributeError, match="module 'sae_lens_afa' has no attribute 'TopAFA'"):
        _ = sae_lens_afa.TopAFA
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from sae_lens_afa.evals import nothing  # noqa: F401


def test_type_checkers_see_the_names_that_are_found_at_run_time():
    for package in (sae_lens_afa, sae_lens_afa.evals, sae_lens_afa.hub):
        tree = ast.parse(inspect.getsource(package))
        checked = next(node for node in tree.body if isinstance(node, ast.If))
        imported = {alias.asname or alias.name for node in checked.body for alias in node.names}
        lazy = inspect.getclosurevars(package.__getattr__).nonlocals
        assert imported == {*lazy["home"], *lazy["modules"]}


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
