"""The command as a user types it, offline; in a process of its own where signals and installation matter."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sae_lens import SAE
from typer.main import get_command

from sae_lens_afa import TopAFASAE, TopAFATrainingSAE, TopAFATrainingSAEConfig, _cli_defaults, evaluate_activations
from sae_lens_afa.cli import app, main
from sae_lens_afa.demo import load_text, model_folder
from sae_lens_afa.evals.report import write_report

COMMAND = [sys.executable, "-m", "sae_lens_afa.cli"]


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capfd) -> Callable[..., Done]:
    """Call the command with these arguments, in `tmp_path` as the working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sae-lens-afa", *args])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A dataset folder, as `datasets.load_dataset` reads it."""
    folder = tmp_path_factory.mktemp("text")
    rows = (json.dumps({"text": chapter}) for chapter in load_text().train[:100])
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder


def save_untrained(folder: Path) -> None:
    """A small SAE at the demo's hook, untrained."""
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=192, d_sae=256))
    metadata = sae.cfg.metadata
    metadata.hook_name, metadata.context_size, metadata.prepend_bos = "blocks.2.hook_resid_pre", 128, True
    sae.save_inference_model(folder)


def train_flags(text: Path, tokens: int) -> list[str]:
    return [
        *("train", "--architecture", "top_afa", "--d_in", "192", "--d-sae", "256", "--afa-coefficient=0.0625"),
        *("--model_name", str(model_folder()), "--hook_name", "blocks.1.hook_resid_pre", "--dataset_path", str(text)),
        *("--is_dataset_tokenized", "false", "--streaming", "false", "--context_size", "32"),
        *("--training_tokens", str(tokens), "--train_batch_size_tokens", "256", "--n_batches_in_buffer", "8"),
        *("--log_to_wandb", "false", "--output_path", "out", "--checkpoint_path", "checkpoints", "--verbose", "false"),
    ]


def interrupt_when_training(args: list[str], cwd: Path) -> tuple[int, str]:
    """Start the command, send SIGINT once the progress bar is there, and return exit code and stderr."""
    log = cwd / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen([*COMMAND, *args], cwd=cwd, stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + 120
        while not re.search(r"(Training SAE|top_afa)\S*: +\d+%", log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=60), log.read_text()


def test_train_takes_saelens_flags_and_saves_an_inference_sae(tmp_path, text, run):
    done = run(*train_flags(text, 1024))
    assert done.code == 0, done.stderr
    sae = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(sae, TopAFASAE)
    assert sae.cfg.metadata.training_architecture_details["afa_coefficient"] == 0.0625


def test_train_takes_the_settings_of_afa_threshold(tmp_path, text, run):
    flags = train_flags(text, 512)
    flags[flags.index("top_afa")] = "afa_threshold"
    flags[flags.index("--afa-coefficient=0.0625")] = "--threshold-scale=0.9"
    more = ["--k_aux", "32", "--reseed-steps", "7", "--aux_loss_coefficient", "0.5", "--b_dec_init", "zeros"]
    done = run(*flags, *more)
    assert done.code == 0, done.stderr
    details = SAE.load_from_disk(tmp_path / "out").cfg.metadata.training_architecture_details
    found = {name: details[name] for name in ("k_aux", "reseed_steps", "aux_loss_coefficient", "b_dec_init")}
    assert found == {"k_aux": 32, "reseed_steps": 7, "aux_loss_coefficient": 0.5, "b_dec_init": "zeros"}


def test_train_help_lists_the_flags_of_saelens_and_of_top_afa(tmp_path, run):
    shown = run("train", "--architecture", "top_afa", "--help").stdout
    for flag in ("--model_name", "--hook_name", "--training_tokens", "--resume_from_checkpoint", "--afa_coefficient"):
        assert flag in shown
    assert "top_afa" in run("train", "--help").stdout


def test_an_interrupted_train_says_how_to_continue_and_continues(tmp_path, text, run):
    code, stderr = interrupt_when_training(train_flags(text, 256 * 2000), tmp_path)
    assert code == 130
    assert "Traceback" not in stderr
    checkpoint = Path(re.search(r"--resume-from-checkpoint (\S+)", stderr).group(1))
    reached = int(checkpoint.name)
    assert 0 < reached < 256 * 2000
    settings = json.loads((tmp_path / checkpoint / "runner_cfg.json").read_text())
    # Continued for ten steps more than it had: the flags of the first call, with a nearer end.
    flags = train_flags(text, reached + 256 * 10)
    done = run(*flags, "--resume-from-checkpoint", str(checkpoint))
    assert done.code == 0, done.stderr
    assert settings["sae"]["d_sae"] == 256
    assert (tmp_path / "out" / "sae_weights.safetensors").is_file()


def test_the_resume_flag_alone_takes_the_settings_from_the_checkpoint(tmp_path, text, run):
    flags = [*train_flags(text, 256 * 8), "--n_checkpoints", "1"]
    assert run(*flags).code == 0
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/*")
    (tmp_path / "out" / "sae_weights.safetensors").unlink()
    done = run("train", f"--resume-from-checkpoint={checkpoint}")
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "sae_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train", "--architecture", "top_afa", "--apply_b_dec_to_input", "false"],
            "apply_b_dec_to_input must be True",
        ),
        (["train", "--architecture", "top_afa", "--d_sae", "0"], "d_sae must be an integer >= 1, got 0"),
        (["train", "--resume-from-checkpoint", "nowhere"], "resume_from_checkpoint: nowhere is not a folder"),
        (["demo", "--tokens", "5"], "tokens must be at least 2048"),
        (["demo", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["demo", "--output", "taken"], "output folder taken exists; pass --overwrite"),
        (["demo", "--resume-from-checkpoint", "nowhere"], "resume_from_checkpoint: nowhere is not a folder"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing_behind(tmp_path, args, message, run):
    (tmp_path / "taken").mkdir()
    done = run(*args)
    assert done.code == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_demo_trains_evaluates_saves_and_says_how_to_load(tmp_path, run):
    done = run("demo", "--tokens", "20480", "--eval-tokens", "2048")
    assert done.code == 0, done.stderr
    stages = re.findall(r"^\[(\d)/4\] (\w+)(?: SAE (\d of \d), (\w+))?", done.stderr, re.MULTILINE)
    assert stages == [
        ("1", "load", "", ""), ("2", "train", "1 of 2", "top_afa"), ("3", "train", "2 of 2", "afa_threshold"),
        ("4", "evaluate", "", ""),
    ]  # fmt: skip
    assert re.search(r"2048/2048 \[", done.stderr), "the evaluation has a bar"
    for row in ("L0", "explained variance", "with the SAE in place", "||f|| / ||z||"):
        assert row in done.stdout
    results = json.loads((tmp_path / "runs/demo/demo_result.json").read_text())
    assert [result["architecture"] for result in results] == ["top_afa", "afa_threshold"]
    for result in results:
        assert result["n_tokens"] == 2048
        assert result["explained_variance"] < 1
        assert result["ce"] < result["ce_with_sae"]
        assert SAE.load_from_disk(tmp_path / result["folder"]).cfg.architecture() == result["architecture"]
    # Ten steps are enough for the dense code only.
    assert results[0]["explained_variance"] > 0
    assert results[0]["ce_with_sae"] < results[0]["ce_ablated"]
    snippet = next(line.strip() for line in done.stdout.splitlines() if "load_from_disk" in line)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["sae"].cfg.d_sae == 3072
    again = run("demo", "--tokens", "2048")
    assert again.code == 1
    assert "--overwrite" in again.stderr
    over = run("demo", "--tokens", "2048", "--eval-tokens", "256", "--overwrite")
    assert over.code == 0
    assert json.loads((tmp_path / "runs/demo/demo_result.json").read_text()) != results
    assert sorted(os.listdir(tmp_path / "runs")) == ["demo", "demo-afa_threshold"]


def test_an_interrupted_demo_continues(tmp_path, run):
    code, stderr = interrupt_when_training(["demo", "--output", "sae"], tmp_path)
    assert code == 130
    assert not (tmp_path / "sae").exists()
    checkpoint = re.search(r"sae-lens-afa demo --resume-from-checkpoint (\S+)", stderr).group(1)
    tokens = int(Path(checkpoint).name) + 4 * 2048
    sizes = ["--tokens", str(tokens), "--eval-tokens", "256"]
    done = run("demo", "--output", "sae", *sizes, "--resume-from-checkpoint", checkpoint)
    assert done.code == 0, done.stderr
    assert SAE.load_from_disk(tmp_path / "sae").W_dec.shape == torch.Size([3072, 192])


def test_eval_judges_the_demo_s_sae_and_plot_redraws(tmp_path, run):
    save_untrained(tmp_path / "runs" / "demo")
    judged = run("eval", "--demo", "--sae", "runs/demo", "--tokens", "2048", "--output", "judged", "--per-token")
    assert judged.code == 0, judged.stderr
    assert "eps-LBO" in judged.stdout
    figures = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert figures["version"] == 1
    (sae,) = figures["saes"].values()
    assert sae["figures"]["n_tokens"] == 2048
    for name in ("zf.png", "eps_lbo.png", "tokens.parquet"):
        assert str(Path("judged") / name) in judged.stdout
        assert (tmp_path / "judged" / name).stat().st_size > 0
    redrawn = run("plot", "judged", "--format", "svg", "--output", "drawings")
    assert redrawn.code == 0, redrawn.stderr
    assert (tmp_path / "drawings" / "zf.svg").read_text().lstrip().startswith("<?xml")
    again = run("eval", "--demo", "--output", "judged")
    assert (again.code, "--overwrite" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval"], "nothing to judge: give --sae PATH"),
        (["eval", "--demo"], "run `sae-lens-afa demo` first"),
        (["eval", "--sae", "nowhere"], "nowhere"),
        (["eval", "--sae", "taken", "--tokens", "0"], "--tokens must be at least 1"),
        (["eval", "--release", "gpt2-small-res-jbb", "--sae-id", "x"], "gpt2-small-res-jb"),
        (["plot", "taken"], "taken has no metrics.json"),
    ],
)
def test_a_wrong_evaluation_is_one_line_and_leaves_nothing_behind(tmp_path, args, message, run):
    (tmp_path / "taken").mkdir()
    done = run(*args)
    assert done.code == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# ---- what is light


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """A folder with an SAE in `sae` and its evaluation in `judged`."""
    folder = tmp_path_factory.mktemp("evaluation")
    save_untrained(folder / "sae")
    result = evaluate_activations(TopAFASAE.load_from_disk(folder / "sae"), torch.randn(500, 192))
    about = {"hook_name": "blocks.2.hook_resid_pre", "architecture": "top_afa"}
    settings = {"model": "kjv_gpt2", "dataset": "noise"}
    write_report(folder / "judged", {"sae": result}, {"sae": about}, settings, per_token=False)
    return folder


def test_help_and_the_verbs_that_only_read_files_import_neither_torch_nor_saelens(evaluation):
    verbs = [name for name in get_command(app).commands if name != "train"]
    calls = [[], ["--help"], *([verb, "--help"] for verb in verbs), ["sweep", "paper", "--help"]]
    calls += [["list", "."], ["info", "."], ["plot", "judged", "--format", "svg", "--format", "html"]]
    script = """
import json, sys
from sae_lens_afa import _cli_defaults
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


def test_the_defaults_that_help_shows_are_those_of_the_functions():
    from sae_lens_afa import demo
    from sae_lens_afa.evals import command, language_model
    from sae_lens_afa.interop import command as interop

    shown = (_cli_defaults.DEMO_TOKENS, _cli_defaults.DEMO_EVAL_TOKENS, _cli_defaults.EVAL_TOKENS)
    assert shown == (demo.run.DEFAULT_TOKENS, demo.evaluation.DEFAULT_TOKENS, language_model.DEFAULT_TOKENS)
    assert (_cli_defaults.EXPORT_TOKENS, _cli_defaults.PROMPTS) == (interop.DEFAULT_TOKENS, command.DEFAULT_PROMPTS)


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
