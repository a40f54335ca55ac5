"""The site is whole: every page has its place, every public name and every verb is in the reference."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import sae_lens_afa as afa
from sae_lens_afa.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages():
    """docs/site/pages.py, which mkdocs calls."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site/pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nav() -> list:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]


def files_in(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    return [path for each in below for path in files_in(each)]


def test_every_page_has_its_place(nav):
    made = {"index.md", "commands.md", "changelog.md"}
    assert sorted(set(files_in(nav)) - made) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_what_is_discovered_is_put_into_its_entry(pages, nav):
    config = pages.on_config({"nav": nav, "docs_dir": str(ROOT / "docs")})
    found = files_in(config["nav"])
    reports = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/results/**/*.md")}
    assert reports <= set(found)
    assert {f"api/{room or 'top'}.md" for room in pages.rooms()} <= set(found)
    assert len(found) == len(set(found))


def test_every_public_name_is_in_the_reference(pages):
    references = pages.api_pages()
    modules = [name for name in afa.__all__ if inspect.ismodule(getattr(afa, name))]
    assert set(references) == {"", *modules}
    everything = "\n".join(references.values())
    for room in references:
        module = getattr(afa, room) if room else afa
        for name in pages.public_names(room):
            assert f"[`{name}`][{pages.place_of(room, name)}]" in references[room]
            assert everything.count(f"::: {pages.place_of(room, name)}\n") == 1
        offered = {name for name in getattr(module, "__all__", ()) if callable(getattr(module, name))}
        assert offered <= set(pages.public_names(room))


def test_every_verb_is_in_the_reference_of_the_command(pages):
    said = pages.commands_page()
    for name, verb in pages.verbs(get_command(app)):
        assert f"## sae-lens-afa {name}\n" in said
        section = said.partition(f"## sae-lens-afa {name}\n")[2].partition("\n## ")[0]
        for param in verb.params:
            assert all(flag in section for flag in param.opts if flag.startswith("--")), (name, param.opts)
    train = said.partition("## sae-lens-afa train")[2].partition("\n## ")[0]
    for flag in ("--architecture", "--threshold_scale", "--hook_name", "--log_to_wandb", "--config", "--overwrite"):
        assert flag in train


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[Training](docs/training.md#resuming)", "[Training](training.md#resuming)"),
        ("![p](docs/images/p.png)", "![p](images/p.png)"),
        ("[changes](CHANGELOG.md)", "[changes](changelog.md)"),
        ("[NOTICE](sae_lens_afa/demo/NOTICE.md)", "[NOTICE](../sae_lens_afa/demo/NOTICE.md)"),
        ("[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
        ("[below](#train)", "[below](#train)"),
    ],
)
def test_links_of_files_beside_the_docs(pages, link, shown):
    assert pages.from_root(link) == shown


@pytest.mark.parametrize(
    ("link", "depth", "repository", "shown"),
    [
        ("[run](../examples/run.py)", 0, "https://host/o/r/", "[run](https://host/o/r/blob/main/examples/run.py)"),
        ("[run](../examples/run.py)", 0, None, "run (`examples/run.py`)"),
        ("[`examples/run.py`](../examples/run.py)", 0, None, "`examples/run.py`"),
        ("[start](../README.md#train)", 0, None, "[start](index.md#train)"),
        ("[start](../../../README.md)", 2, None, "[start](../../index.md)"),
        ("[up](../training.md)", 1, None, "[up](../training.md)"),
        ("[page](training.md)", 0, None, "[page](training.md)"),
    ],
)
def test_links_out_of_the_docs(pages, link, depth, repository, shown):
    assert pages.LINK.sub(lambda found: pages.outside(found, depth, repository), link) == shown
