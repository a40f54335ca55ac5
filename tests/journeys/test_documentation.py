"""Every code block of README and docs runs as it stands, on the bundled model and text, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from sae_lens_afa.cli import app
from sae_lens_afa.cli.runner_flags import parse_config
from sae_lens_afa.demo import load_text, model_folder

ROOT = Path(__file__).parents[2]
# Left out are the reports in docs/results, which name the commands of hours that they come from, and the page that
# tests/test_extending.py runs.
DOCS = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "extending.md"]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in DOCS)]
DRAWINGS = ("text", "mermaid", "yaml")  # tests/cli/test_config_file.py reads the last

# What is put in place of GPT-2, OpenWebText, an accelerator and hours of computing. Nothing else is changed.
SUBSTITUTIONS = [
    ('model_name="gpt2"', f'model_name="{model_folder()}"'),
    ("LanguageModelSAETrainingRunner(cfg)", "LanguageModelSAETrainingRunner(cfg, text, model)"),
    ("--model_name gpt2", f"--model_name {model_folder()}"),
    ('HookedSAETransformer.from_pretrained_no_processing("gpt2", device="cuda")', "sae_lens_afa.demo.load_model()"),
    ('HookedSAETransformer.from_pretrained_no_processing("gpt2", device=device)', "sae_lens_afa.demo.load_model()"),
    ('ActivationsStore.from_sae(model, sae, "Skylion007/openwebtext"', "ActivationsStore.from_sae(model, sae, text"),
    ("dataset_path=\"Skylion007/openwebtext\"", 'dataset_path="text"'),
    ("--dataset_path Skylion007/openwebtext", "--dataset_path text"),
    ("--dataset Skylion007/openwebtext", "--dataset text"),
    ("blocks.6.", "blocks.2."),
    ("d_in=768, d_sae=12288", "d_in=192, d_sae=384"),
    ("--d_in 768 --d_sae 12288", "--d_in 192 --d_sae 384"),
    ("20_001 * 4096", "3 * 4096"),
    ("--training_tokens 81924096", "--training_tokens 12288"),
    ('"cuda"', '"cpu"'),
    ("--device cuda", "--device cpu"),
    ("--output_path runs/gpt2-layer6", "--output_path runs/gpt2-layer6 --overwrite"),  # after the same in Python
    ("sae-lens-afa demo", "sae-lens-afa demo --tokens 2048 --eval-tokens 256"),
    ("sae-lens-afa eval --", "sae-lens-afa eval --tokens 2048 --"),
    ("sae-lens-afa features --", "sae-lens-afa features --tokens 2048 --"),
    ('model, "runs/features")', 'model, "runs/features", tokens=2048)'),
    ("--release gpt2-small-res-jb --sae-id blocks.7.hook_resid_pre", "--sae runs/gpt2-layer6"),
    ("store, model)", "store, model, tokens=2048)"),
    ("sweep ground-truth", "sweep ground-truth --preset tiny"),
    ("sweep paper --preset demo", "sweep paper --preset tiny"),
    ("--preset quick", "--preset tiny"),
    ("--steps 2500 --steps 10000", "--steps 10 --steps 20"),
]  # fmt: skip

# Files that the reader has, and a shell that runs `sae-lens-afa` without paying for its imports each time.
PRELUDE = f"""
import lzma, json, os, shlex, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
import sae_lens_afa.demo
from sae_lens_afa.cli import main
os.mkdir("text")
chapters = {load_text().train[:60]!r}
Path("text/train.jsonl").write_text("\\n".join(json.dumps({{"text": c}}) for c in chapters))
from datasets import Dataset
text = Dataset.from_dict({{"text": chapters}})
model = sae_lens_afa.demo.load_model()
for name in ("train", "test"):
    save_file({{"activations": torch.randn(512, 16)}}, name + ".safetensors")

if TRAINED_BEFORE:  # a page that begins where the README's training ends
    sae = make(d_in=192, d_sae=384)
    about = sae.cfg.metadata
    about.model_name, about.dataset_path = {str(model_folder())!r}, "text"
    about.hook_name, about.context_size, about.prepend_bos = "blocks.2.hook_resid_pre", 128, True
    sae.save_inference_model("runs/gpt2-layer6")

def shell(line):
    print("$", line, flush=True)
    sys.argv = shlex.split(line, comments=True)
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    for language, _ in found:
        known = (*DRAWINGS, "python", "sh", "bash")
        assert language in known, f"{page}: a block of {language or 'no language'} is not run: say python or sh"
    return [block for block in found if block[0] not in DRAWINGS]


def commands(block: str) -> list[str]:
    """Commands of a shell block: lines, continued by backslashes, without what installs."""
    lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]
    return [part for part in parts if not part.startswith(("pip install", "pytest"))]


def substituted(text: str) -> str:
    for old, new in SUBSTITUTIONS:
        text = text.replace(old, new)
    return text


def script(page: str) -> str:
    """The page as one program."""
    lines: list[str] = []
    for language, content in blocks(page):
        if language == "python":
            lines.append(substituted(content))
        else:
            lines += [f"shell({substituted(command)!r})" for command in commands(content)]
    return "\n".join(lines)


RUN = [page for page in PAGES if blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_every_block_of_a_page_runs(page, client):
    program = PRELUDE.replace("TRAINED_BEFORE", repr(page != "README.md")) + script(page)
    (client.cwd / "program.py").write_text(program)
    client.run("exec(compile(open('program.py').read(), 'program.py', 'exec'))")


@pytest.mark.parametrize("page", RUN)
def test_every_block_of_a_page_can_be_read(page):
    compile(script(page), page, "exec")
    for language, content in blocks(page):
        for line in commands(content) if language != "python" else ():
            program, *args = shlex.split(substituted(line), comments=True)
            assert program in ("sae-lens-afa", "python"), line
            if args[0] == "train":
                assert parse_config([arg for arg in args[1:] if arg != "--overwrite"]).training_tokens == 3 * 4096
            elif program == "sae-lens-afa":
                command = get_command(app)
                while hasattr(command, "commands"):
                    command = command.commands[args.pop(0)]
                command.make_context("sae-lens-afa", args)  # unknown options and values of another kind are errors


def test_every_substitution_is_needed():
    text = "\n".join(content for page in PAGES for _, content in blocks(page))
    for old, _ in SUBSTITUTIONS:
        assert old in text, f"{old!r} is in no block: leave it out of the table"


def test_shell_and_python_example_mean_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dict.fromkeys(("python", "sh"))
    for language, content in blocks("README.md"):
        if language == "python" and "LanguageModelSAERunnerConfig(" in content:
            lines = [line for line in substituted(content).splitlines() if ".run()" not in line]
            names: dict = {}
            exec("\n".join(lines), names)
            found["python"] = names["cfg"]
        if language == "sh" and "sae-lens-afa train" in content:
            (command,) = commands(content)
            found["sh"] = parse_config([arg for arg in shlex.split(substituted(command))[2:] if arg != "--overwrite"])
    settings = {name: cfg.to_dict() for name, cfg in found.items()}
    for each in settings.values():
        each.pop("checkpoint_path")  # it has an id of its own
    assert settings["python"] == settings["sh"]
