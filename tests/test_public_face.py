"""The names that other people's scripts call: they exist, take what they took, and show how they are used."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect

import pytest

import sae_lens_afa as afa
from sae_lens_afa import architectures, evals, hub, reports, saes
from sae_lens_afa.architectures import ARCHITECTURES

ROOMS = (
    "demo", "evals", "experiments", "feature_page", "functional", "hub", "interop", "loading", "plots", "reports",
    "runner", "saes", "selection",
)  # fmt: skip

# What is promised: the first parameters in their order, and others that are given by name.
SIGNATURES = {
    "TopAFATrainingSAEConfig.paper": ("", "d_in d_sae afa_coefficient"),
    "functional.feature_norm": ("feature_acts W_dec b_dec", ""),
    "functional.afa_loss": ("feature_acts x", ""),
    "functional.epsilon_lbo": ("dense_norm feature_norm d_sae", ""),
    "functional.coherence": ("W_dec", ""),
    "selection.norm_matching_topk": ("acts target_norm decoder_norm", "backend"),
    "selection.available_backends": ("", ""),
    "AFAMetrics": ("d_sae", ""),
    "AFAMetrics.update": ("self dense feature_acts W_dec b_dec recons", ""),
    "AFAMetrics.merge": ("self other", ""),
    "AFAMetrics.compute": ("self", ""),
    "AFAMetrics.from_norms": ("norm_z norm_f nmse", "d_sae"),
    "AFAResult.to_dict": ("self", ""),
    "evaluate_activations": ("sae activations", ""),
    "run_afa_evals": ("sae activation_store model", ""),
    "AFAEvaluator": ("base_evaluator", ""),
    "features": ("sae activation_store model output", "tokens name overwrite progress"),
    "feature_page.features_by_name": ("sae output", "name model dataset hook context_size tokens device overwrite"),
    "plots.zf_plot": ("data", "save"),
    "plots.eps_lbo_plot": ("", "save"),
    "plots.l0_plot": ("", "loss save"),
    "push_to_hub": ("saes repo_id", "metrics features license"),
    "hub.load_saes": ("paths release sae_ids device", ""),
    "load": ("repo_or_path sae_id", "revision"),
    "list_saes": ("repo_or_path", "revision"),
    "export_jumprelu": ("sae activations", ""),
    "interop.export_to_folder": ("sae output", "activations model dataset overwrite"),
    "convert_reference_checkpoint": ("path output_path", "activations overwrite"),
    "reports.evaluate_saes": ("saes output", "model dataset hook context_size tokens overwrite"),
    "reports.check_evaluation": ("output", "tokens context_size overwrite"),
    "reports.draw_plots": ("report output formats", ""),
    "reports.read_report": ("folder", ""),
    "demo.load_model": ("", ""),
    "demo.load_text": ("", ""),
    "demo.run_demo": ("output", "tokens eval_tokens device overwrite resume_from_checkpoint progress"),
    "experiments.run_sweep": ("sweep output", ""),
    "experiments.ground_truth_sweep": ("preset", ""),
    "experiments.paper_sweep": ("preset", ""),
    "experiments.activations_sweep": ("", ""),
    "runner.InterruptibleTrainingRunner": ("", ""),
}


def found(name: str):
    return functools.reduce(getattr, name.split("."), afa)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_public_name_takes_what_it_took(name):
    first, by_name = (part.split() for part in SIGNATURES[name])
    parameters = inspect.signature(found(name)).parameters
    assert list(parameters)[: len(first)] == first
    assert not set(by_name) - set(parameters)


def test_every_name_is_found_when_it_is_asked_for():
    assert set(ROOMS) <= set(afa.__all__)
    assert {name for entry in ARCHITECTURES for name in entry.classes} <= set(afa.__all__)
    for package in (afa, *map(found, ROOMS)):
        assert [name for name in getattr(package, "__all__", []) if not hasattr(package, name)] == []
    assert callable(afa.hub.load)  # and not the module of that name
    assert {"train", "held_out"} <= set(dir(afa.demo.load_text()))
    with pytest.raises(AttributeError, match="module 'sae_lens_afa' has no attribute 'TopAFA'"):
        _ = afa.TopAFA
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from sae_lens_afa.evals import nothing  # noqa: F401


def test_what_is_internal_is_not_offered_even_when_it_has_been_imported():
    for internal in ("kernels", "sparse", "files", "architectures", "defaults", "loading.gpt2_folder"):
        importlib.import_module(f"sae_lens_afa.{internal}")
    offered = {name for name in dir(afa) if not name.startswith("__")}
    assert offered == set(afa.__all__) - {"__version__"}
    assert offered.isdisjoint({"kernels", "sparse", "files", "architectures", "defaults", "gpt2_folder", "annotations"})


def test_every_public_function_and_class_shows_an_example_that_runs():
    """They are run as doctests; here only that there is one."""
    names = {
        f"{room}.{name}" if room else name
        for room in ("", *ROOMS)
        for name in getattr(found(room) if room else afa, "__all__", [])
    }
    without = []
    for name in sorted(names):
        value = found(name)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or is_exception(value):
            continue
        text = value.__doc__ or ""
        if "Example:" not in text or not doctest.DocTestParser().get_examples(text):
            without.append(f"{value.__module__}.{value.__qualname__}")
    assert not without, "without an example:\n" + "\n".join(sorted(set(without)))


def is_exception(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)


@pytest.mark.parametrize("package", [afa, evals, hub, reports, saes], ids=lambda package: package.__name__)
def test_type_checkers_see_the_names_that_are_found_at_run_time(package):
    names = imported_names(package)
    if "*" in names:  # of the architectures
        names |= {name for entry in ARCHITECTURES for name in entry.classes}
    assert {name for name in names if name not in ("*", "TYPE_CHECKING")} == set(package.__all__) - {"__version__"}


def test_type_checkers_see_the_classes_of_the_list():
    checked = type_checking_block(architectures)
    modules = [node.module for node in checked if isinstance(node, ast.ImportFrom)]
    assert sorted(modules) == sorted(entry.module for entry in ARCHITECTURES)
    for entry in ARCHITECTURES:
        assert set(importlib.import_module(entry.module).__all__) == set(entry.classes)


def type_checking_block(module) -> list[ast.stmt]:
    return next(node.body for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If))


def imported_names(module) -> set[str]:
    """The public names that a type checker finds imported in a module."""
    nodes = [*ast.parse(inspect.getsource(module)).body, *type_checking_block(module)]
    aliases = [
        alias
        for node in nodes
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sae_lens_afa")
        for alias in node.names
    ]
    return {alias.asname or alias.name for alias in aliases if not (alias.asname or alias.name).startswith("_")}
