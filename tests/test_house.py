"""Rules of the house, held by reading the source: order of imports, light modules, names, docstrings, sizes."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "sae_lens_afa"
ROOT = Path(__file__).parents[1] / PACKAGE

# Each room may import those of the lines below its own, and its neighbours on the line.
ORDER = (
    "cli",
    "experiments demo distributed",
    "hub",
    "interop",
    "reports feature_page",
    "training runner",
    "plots",
    "evals",
    "saes",
    "crossover",
    "selection sparse",
    "loading functional kernels",
    "_support over_ranks",
    "_memory _transforms",
    "_lazy",
    "defaults",
    "architectures",
    "files torchrun",
)
# The package's own names and its registration reach into every room, lazily.
ABOVE_ALL = ("__init__", "_import_hook", "registration")
LEVELS = {room: len(ORDER) - i for i, line in enumerate(ORDER) for room in line.split()}

LIGHT = (
    "architectures", "defaults", "files", "torchrun", "_lazy", "plots", "reports", "evals.result", "evals.metric_list",
    "cli",
)  # fmt: skip
HEAVY = {"torch", "sae_lens", "transformer_lens", "transformers", "datasets", "pandas", "matplotlib", "plotly"}
FORBIDDEN_STARTS = ("What", "Which", "How", "Whether", "Of", "The same", "See", "As", "Where")
MAX_FILE, MAX_BODY = 300, 60
# Modules and functions that may be longer, each with its reason.
LONG_FILES: dict[str, str] = {
    "functional": "the formulas in one place, each with its derivation and example",
    "kernels.select": "one search, which its comments explain block by block",
}
LONG_FUNCTIONS: dict[str, str] = {}


# ---- reading


def name_of(path: Path) -> str:
    """Return a module's name without that of the package; a folder's for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def modules() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_in(node: ast.AST, *, typing: bool, functions: bool) -> Iterator[str]:
    """Yield full names of what is imported below a node: "a.b" of `import a.b`, "a.b.c" of `from a.b import c`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif is_type_checking(child) and not typing:
            for part in child.orelse:
                yield from imports_in(ast.Module([part], []), typing=typing, functions=functions)
        elif functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_in(child, typing=typing, functions=functions)


def module_of(imported: str) -> str | None:
    """Return the module of this package that an import reads; None if it is another package's."""
    if imported.partition(".")[0] != PACKAGE:
        return None
    name = imported.partition(".")[2]
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or "__init__"


@cache
def imported_modules(name: str, *, typing: bool, functions: bool) -> frozenset[str]:
    """Return the modules of this package that a module imports itself."""
    found = (module_of(item) for item in imports_in(modules()[name], typing=typing, functions=functions))
    return frozenset(module for module in found if module is not None and module != name)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def listed(offenders: list[str]) -> str:
    return "\n" + "\n".join(sorted(offenders))


# ---- imports


def test_every_room_has_its_place_in_the_order():
    unknown = {room_of(name) for name in modules()} - LEVELS.keys() - set(ABOVE_ALL)
    assert not unknown, listed(list(unknown))


def test_imports_run_downwards():
    offenders = [
        f"{name} imports {other}"
        for name in modules()
        for other in imported_modules(name, typing=name != "architectures", functions=True)
        if room_of(name) not in ABOVE_ALL
        and room_of(name) != room_of(other)
        and LEVELS.get(room_of(other), len(ORDER) + 1) > LEVELS.get(room_of(name), 0)
    ]
    assert not offenders, listed(offenders)


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        name: imported_modules(name, typing=name != "architectures", functions=True)
        for name in modules()
        if room_of(name) not in ABOVE_ALL
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_nothing_imports_the_command():
    offenders = [
        f"{name} imports {other}"
        for name in modules()
        for other in imported_modules(name, typing=True, functions=True)
        if room_of(other) == "cli" and room_of(name) != "cli"
    ]
    assert not offenders, listed(offenders)


def with_what_it_imports(name: str) -> dict[str, str]:
    """Return all modules that importing one imports, each with the one that does; folders' __init__ among them."""
    found, pending = {name: name}, [name]
    while pending:
        current = pending.pop()
        for other in imported_modules(current, typing=False, functions=False):
            parts = other.split(".")
            for module in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                if module in modules() and module not in found:
                    found[module] = current
                    pending.append(module)
    return found


@pytest.mark.parametrize("light", LIGHT)
def test_light_modules_import_nothing_heavy(light):
    offenders = [
        f"{light} imports {module} (in {by}), which imports {item}"
        for module, by in with_what_it_imports(light).items()
        for item in imports_in(modules()[module], typing=False, functions=False)
        if item.partition(".")[0] in HEAVY
    ]
    assert not offenders, listed(offenders)


# ---- names


def test_no_two_modules_have_one_name():
    places = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        is_verb = path.parent.name == "cli"
        if not is_verb and path.stem not in ("__init__", "__main__"):
            places[path.stem.removeprefix("_")].append(name_of(path))
    offenders = [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]
    assert not offenders, listed(offenders)


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.removeprefix("_")].append(name)
    offenders = [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]
    assert not offenders, listed(offenders)


# ---- docstrings and sizes


def definitions() -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every module, class and function with its place."""
    for name, tree in modules().items():
        yield name, tree
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.lineno} {node.name}", node


def test_docstrings_begin_with_a_line_that_stands_on_its_own():
    offenders = [
        f"{place}: {first}"
        for place, node in definitions()
        if (first := (ast.get_docstring(node) or "").partition("\n")[0])
        and any(first == start or first.startswith(f"{start} ") for start in FORBIDDEN_STARTS)
    ]
    assert not offenders, listed(offenders)


def test_files_can_be_read_in_one_go():
    lengths = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.rglob("*.py")
        if name_of(path) not in LONG_FILES
    }
    offenders = [f"{name}: {length} lines" for name, length in lengths.items() if length > MAX_FILE]
    assert not offenders, listed(offenders)


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function below its signature and its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_fit_a_screen():
    offenders = [
        f"{place}: {body_lines(node)} lines"
        for place, node in definitions()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MAX_BODY
        and place.partition(" ")[2] not in LONG_FUNCTIONS
    ]
    assert not offenders, listed(offenders)
