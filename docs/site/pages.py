"""Pages of the site that are made when it is built, each from the one place where its content is."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "sae_lens_afa"
# Links of the files beside docs/, to what the site shows of them.
MOVED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


# ---- called by mkdocs


def on_config(config: Any) -> Any:
    """Fill in what is discovered: tutorials, rooms of the API, reports."""
    docs = Path(config["docs_dir"])
    for title, found in (("Tutorials", tutorials(docs)), ("API", api_nav()), ("Results", results(docs))):
        entry_of(config["nav"], title)[title] = found
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    made = {
        "index.md": from_root((ROOT / "README.md").read_text(encoding="utf-8")),
        "changelog.md": from_root((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
        "commands.md": commands_page(),
        **{f"api/{room or 'top'}.md": page for room, page in api_pages().items()},
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links to files outside of docs/ into links to the repository, or to their paths where it has no address."""
    depth = page.file.src_uri.count("/")
    return LINK.sub(lambda link: outside(link, depth, config.get("repo_url")), markdown)


# ---- links


def from_root(text: str) -> str:
    """Return a page that stands beside docs/ with its links as a page inside has them."""

    def moved(link: re.Match[str]) -> str:
        mark, label, target = link.groups()
        if re.match(r"\w+:|#", target):
            return link[0]
        path, hash_, anchor = target.partition("#")
        path = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}")
        return f"{mark}[{label}]({path}{hash_}{anchor})"

    return LINK.sub(moved, text)


def outside(link: re.Match[str], depth: int, repository: str | None) -> str:
    """Return a link of a page so many folders deep, if it leads out of docs/, as the site has it."""
    mark, label, target = link.groups()
    up = "../" * (depth + 1)
    if not target.startswith(up):
        return link[0]
    path, hash_, anchor = target.removeprefix(up).partition("#")
    if path in MOVED:
        return f"{mark}[{label}]({'../' * depth}{MOVED[path]}{hash_}{anchor})"
    if repository:
        return f"{mark}[{label}]({repository.rstrip('/')}/blob/main/{path}{hash_}{anchor})"
    return label if label.strip("`") == path else f"{label} (`{path}`)"


# ---- lists


def entry_of(nav: list[Any], title: str) -> dict[str, Any]:
    """Return the entry of the navigation with this title, however deep."""
    for entry in nav:
        if isinstance(entry, dict):
            if title in entry:
                return entry
            for below in entry.values():
                with contextlib.suppress(KeyError):
                    return entry_of(below if isinstance(below, list) else [], title)
    raise KeyError(title)


def title_of(path: Path) -> str:
    """Return the first heading of a page."""
    return next(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))


def tutorials(docs: Path) -> list[Any]:
    """List the tutorials, by their numbers."""
    notebooks = sorted((docs / "tutorials").glob("*.ipynb"))
    return ["tutorials/index.md", *(f"tutorials/{path.name}" for path in notebooks)]


def results(docs: Path) -> list[Any]:
    """List the reports, by their folders: many have the same heading."""
    reports = sorted(docs.glob("results/**/*.md"))
    return [
        {
            (path.parent.name if path.stem == "report" else path.stem).replace("_", " "): path.relative_to(
                docs
            ).as_posix()
        }
        for path in reports
    ]


# ---- commands


def commands_page() -> str:
    """Return the reference of the command, from the command itself."""
    from typer.main import get_command

    from sae_lens_afa.cli import app

    parts = ["# Commands", "Made from the command itself; `sae-lens-afa VERB --help` says the same."]
    for name, verb in verbs(get_command(app)):
        parts += [f"## sae-lens-afa {name}", *(train_help() if name == "train" else verb_help(name, verb))]
    return "\n\n".join(parts) + "\n"


def verbs(command: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every verb with its name, those below a verb after it."""
    for name, verb in command.commands.items():
        if hasattr(verb, "commands"):
            yield from verbs(verb, f"{above}{name} ")
        else:
            yield f"{above}{name}", verb


def verb_help(name: str, verb: Any) -> list[str]:
    """Return what a verb does, how it is called, and a table of its options."""
    arguments = [param for param in verb.params if param.param_type_name == "argument"]
    options = [param for param in verb.params if param.param_type_name == "option"]
    usage = " ".join(["sae-lens-afa", name, *(each.name.upper() for each in arguments)])
    parts = [inspect.cleandoc(verb.help or ""), f"```text\n{usage} [OPTIONS]\n```"]
    rows = [
        *(f"| {each.name.upper()} | | {cell(each.help)} |" for each in arguments),
        *(f"| {flags(each)} | {default(each)} | {cell(each.help)} |" for each in options),
    ]
    return [*parts, "\n".join(["| option | default | |", "|---|---|---|", *rows])] if rows else parts


def flags(option: Any) -> str:
    """Return how an option is spelt."""
    return " ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))


def default(option: Any) -> str:
    """Return an option's default, if it has one that says something."""
    value = option.default
    is_none = value is None or value is False or value == () or "Sentinel" in type(value).__name__
    return "required" if option.required else "" if is_none else f"`{value}`"


def cell(text: str | None) -> str:
    """Return a text as it can stand in a table."""
    return " ".join((text or "").replace("|", "\\|").split())


def train_help() -> list[str]:
    """Return the flags of SAELens' runner, as its own parser prints them."""
    from sae_lens_afa.cli.runner_flags import parse_config

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse_config(["--architecture", "afa_pursuit", "--help"])
    said = (
        "Every flag of SAELens' runner. These are those of `--architecture afa_pursuit`; others have some of their own."
    )
    return [said, f"```text\n{printed.getvalue().strip()}\n```"]


# ---- API


def rooms() -> list[str]:
    """Return the modules that offer public names, the package itself first."""
    package = importlib.import_module(PACKAGE)
    return ["", *(name for name in package.__all__ if inspect.ismodule(getattr(package, name)))]


def api_nav() -> list[Any]:
    """List the pages of the reference."""
    return [{room or PACKAGE: f"api/{room or 'top'}.md"} for room in rooms()]


def public_names(room: str) -> list[str]:
    """Return what a room offers: classes and functions of `__all__`, or those that it defines."""
    module = importlib.import_module(f"{PACKAGE}.{room}" if room else PACKAGE)
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    objects = {name: getattr(module, name) for name in names}
    return [
        name
        for name, value in objects.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith(PACKAGE)
        if hasattr(module, "__all__") or value.__module__ == module.__name__
    ]


def place_of(room: str, name: str) -> str:
    """Return where a public name is defined."""
    value = getattr(importlib.import_module(f"{PACKAGE}.{room}" if room else PACKAGE), name)
    return f"{value.__module__}.{value.__qualname__}"


def api_pages() -> dict[str, str]:
    """Return the page of each room: its docstring, and its names, each shown on one page and linked from others."""
    pages: dict[str, str] = {}
    shown: set[str] = set()
    for room in [*rooms()[1:], ""]:
        module = importlib.import_module(f"{PACKAGE}.{room}" if room else PACKAGE)
        places = {name: place_of(room, name) for name in public_names(room)}
        links = [f"- [`{name}`][{place}]" for name, place in places.items()]
        new = list(dict.fromkeys(place for place in places.values() if place not in shown))
        shown.update(new)
        parts = [
            f"# {module.__name__}",
            inspect.getdoc(module) or "",
            "\n".join(links),
            *(f"::: {place}" for place in new),
        ]
        pages[room] = "\n\n".join(parts) + "\n"
    return pages
