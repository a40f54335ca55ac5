"""Imports the package in every order that a user may choose, in one process.

One, because SAELens' own dependencies take seconds to import: they stay loaded, and the two packages are forgotten
between the orders.
"""

# ruff: noqa: F401, B018

import importlib
import importlib.util
import sys
import threading
import warnings

OWN = ("sae_lens", "sae_lens_afa")
HEAVY = {"torch", "sae_lens", "transformers", "datasets", "matplotlib", "plotly", "pandas", "scipy", "numba", "triton"}


def what_only_reads_is_light():
    import sae_lens_afa as afa
    import sae_lens_afa.cli
    from sae_lens_afa.plots import zf_plot
    from sae_lens_afa.reports import read_report

    assert "TopAFASAE" in dir(afa)
    assert callable(zf_plot)
    assert callable(read_report)
    assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)


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
    import pytest

    sys.modules["sae_lens"] = None
    import sae_lens_afa

    for wanted in ("sae_lens", "sae_lens_afa.saes"):
        with pytest.raises(ImportError, match="sae_lens"):
            importlib.import_module(wanted)
    del sys.modules["sae_lens"]
    import sae_lens


def two_threads():
    import sae_lens_afa
    from sae_lens_afa import _import_hook

    other = threading.Thread(target=importlib.import_module, args=["sae_lens_afa.saes"], daemon=True)
    own = _import_hook._Loader.exec_module

    def execute(self, module):
        # While SAELens is being imported, another thread begins with the architectures, until it has to wait.
        other.start()
        while "sae_lens_afa.saes" not in sys.modules:
            other.join(0.01)
        own(self, module)

    _import_hook._Loader.exec_module = execute
    import sae_lens.registry

    assert "top_afa" in sae_lens.registry.SAE_CLASS_REGISTRY  # at once, whatever the other thread does
    other.join(60)
    assert not other.is_alive()


ORDERS = (
    ours_first, saelens_first, an_architecture_first, a_module_without_saelens_first, the_runner_as_a_module, all_names,
    only_looked_for_first, reloaded, imported_a_second_time, without_saelens_first, two_threads,
)  # fmt: skip


def check_registered(order: str) -> None:
    registry, ours = sys.modules["sae_lens.registry"], sys.modules["sae_lens_afa"]
    from sae_lens_afa.architectures import ARCHITECTURES

    for entry in ARCHITECTURES:
        training, config, *_ = (getattr(ours, name) for name in entry.classes)
        assert registry.get_sae_training_class(entry.name) == (training, config), order
    assert registry.get_sae_class("top_afa") == (ours.TopAFASAE, ours.TopAFASAEConfig), order
    assert not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path), order
    assert type(sys.modules["sae_lens"].__spec__.loader).__name__ != "_Loader", order


if __name__ == "__main__":
    what_only_reads_is_light()
    print("quiet so far", file=sys.stderr)
    warnings.simplefilter("ignore")
    for dependency in ("torch", "datasets", "transformers", "transformer_lens"):
        importlib.import_module(dependency)
    for order in ORDERS:
        forget(*OWN)
        order()
        check_registered(order.__name__)
    print("done")
