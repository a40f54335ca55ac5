"""The command as a whole: what it imports, what a wrong call is told, and how failures end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import COMMAND, save_untrained
from sae_lens import SAE
from typer.main import get_command

from sae_lens_afa.cli import app
from sae_lens_afa.demo import load_text
from sae_lens_afa.loading.text import text_dataset
from sae_lens_afa.reports import evaluate_saes

# ---- what is light


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, model) -> Path:
    """A folder with an SAE in `sae` and its evaluation in `judged`."""
    folder = tmp_path_factory.mktemp("evaluation")
    save_untrained(folder / "sae")
    sae = SAE.load_from_disk(folder / "sae")
    text = text_dataset(load_text().held_out[:3], name="three chapters")
    evaluate_saes({"sae": sae}, folder / "judged", model=model, dataset=text, tokens=64, progress=False)
    return folder


def test_help_and_the_verbs_that_only_read_files_import_neither_torch_nor_saelens(evaluation):
    verbs = [name for name in get_command(app).commands if name != "train"]
    calls = [[], ["--help"], *([verb, "--help"] for verb in verbs), ["sweep", "paper", "--help"]]
    calls += [["list", "."], ["info", "."], ["plot", "judged", "--format", "svg", "--format", "html"]]
    script = """
import json, sys
from sae_lens_afa.cli import app, main
for args in json.loads(sys.argv.pop()):
    sys.argv[1:] = args
    try:
        main()
    except SystemExit as end:
        assert not end.code, (args, end.code)
    heavy = {"torch", "sae_lens", "transformers", "transformer_lens", "datasets"} & set(sys.modules)
    assert not heavy, (args, heavy)
"""
    command = [sys.executable, "-c", script, json.dumps(calls)]
    done = subprocess.run(command, cwd=evaluation, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "architecture" in done.stdout
    assert (evaluation / "judged" / "zf.svg").is_file()


# ---- what goes wrong


def verbs_of(group: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found += verbs_of(command, (*before, name)) if hasattr(command, "commands") else [(*before, name)]
    return found


@pytest.mark.parametrize("verb", [verb for verb in verbs_of(get_command(app)) if verb != ("train",)], ids=" ".join)
def test_an_unknown_flag_names_its_nearest_and_none_is_abbreviated(verb, run):
    flags = [flag for flag in options_of(verb) if flag != "--help"]
    longest = max([*flags, "--help"], key=len)
    for wrong in (longest[:-1], longest[:-2] + "x" + longest[-2:]):
        done = run(*verb, wrong, "value")
        assert done.code == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: No such option: {wrong}; did you mean {longest}?"), line
        assert line.endswith(f"See sae-lens-afa {' '.join(verb)} --help.")


def options_of(verb: tuple[str, ...]) -> list[str]:
    command: Any = get_command(app)
    for name in verb:
        command = command.commands[name]
    return [flag for param in command.params for flag in param.opts if flag.startswith("--")]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evl"], "No such command 'evl'. Did you mean 'eval'?"),
        (["sweep", "papr"], "No such command 'papr'. Did you mean 'paper'?"),
        (["--dbug", "list"], "No such option: --dbug; did you mean --debug?"),
        (["eval", "--tokens", "many"], "Invalid value for '--tokens'"),
        (["info"], "Missing argument"),
        (["list", "one", "two"], "unexpected extra argument"),
    ],
)
def test_a_call_that_cannot_be_parsed_is_one_line(args, says, run):
    done = run(*args)
    assert done.code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "--help" in line


@pytest.mark.parametrize("verb", sorted({*get_command(app).commands} - {"train", "eval", "features", "sweep"}))
def test_a_verb_that_ranks_do_not_share_is_refused_under_torchrun(verb, run, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    failed = run(verb, "--help")
    assert failed.code == 1
    assert failed.stderr.startswith(f"rank 1: error: {verb} is the work of one process, and torchrun started 2: call")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(verb, "--help").code == 0


def test_without_a_verb_the_help_is_shown(run):
    assert "eval" in run().stdout
    sweep = run("sweep")
    assert "ground-truth" in sweep.stdout + sweep.stderr
    assert "error" not in sweep.stderr


@pytest.mark.parametrize("args", [["list", "x"], ["--debug", "list", "x"], ["list", "x", "--debug"]])
def test_every_failure_is_one_line_and_debug_shows_the_traceback(monkeypatch, args, run):
    def fail(*_: object) -> None:
        {}["d_in"]

    monkeypatch.setattr("sae_lens_afa.hub.list_saes", fail)
    done = run(*args)
    assert done.code == 1
    line = "error: KeyError: no entry 'd_in' (unexpected: run it again with --debug for the traceback)"
    if "--debug" in args:
        assert done.stderr.startswith("Traceback")
        assert '{}["d_in"]' in done.stderr
        assert done.stderr.splitlines()[-1] == line
    else:
        assert done.stderr.splitlines() == [line]


def test_an_interruption_has_no_traceback(monkeypatch, run):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_afa.hub.list_saes", stop)
    done = run("list", "x")
    assert (done.code, done.stderr.split()) == (130, ["interrupted"])


def test_a_value_after_two_dashes_is_no_flag_of_ours(run):
    done = run("list", "--", "--debug")
    assert done.code == 1
    assert done.stderr.startswith("error: '--debug' is neither a folder here nor a repository")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one(tmp_path):
    for i in range(1500):  # more than a pipe's buffer takes before the reader is gone
        (tmp_path / f"sae-{i:060d}").mkdir()
        for name in ("cfg.json", "sae_weights.safetensors"):
            (tmp_path / f"sae-{i:060d}" / name).touch()
    process = subprocess.Popen([*COMMAND, "list", "."], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 1)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "list", "."], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert (done.stderr, done.returncode) == (b"error: no space left on the disk\n", 1)
