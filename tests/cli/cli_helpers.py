"""Arguments, folders and processes for tests of the command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from sae_lens_afa import TopAFATrainingSAE, TopAFATrainingSAEConfig
from sae_lens_afa.demo import model_folder

COMMAND = [sys.executable, "-m", "sae_lens_afa.cli"]
HOOK = "blocks.1.hook_resid_pre"


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of a failure."""
        lines = self.stderr.strip().splitlines()
        assert lines
        assert lines[-1].startswith("error: "), self.stderr
        assert "Traceback" not in self.stderr
        return lines[-1]


def save_untrained(folder: Path, **metadata) -> Path:
    """A small SAE on the bundled model, untrained."""
    sae = TopAFATrainingSAE(TopAFATrainingSAEConfig(d_in=192, d_sae=64))
    about = {"hook_name": HOOK, "context_size": 32, "prepend_bos": True, "model_name": "kjv_gpt2", **metadata}
    for name, value in about.items():
        setattr(sae.cfg.metadata, name, value)
    sae.save_inference_model(folder)
    return folder


def train_flags(text: Path, tokens: int) -> list[str]:
    return [
        *("train", "--architecture", "top_afa", "--d_in", "192", "--d-sae", "256", "--afa-coefficient=0.0625"),
        *("--model_name", str(model_folder()), "--hook_name", HOOK, "--dataset_path", str(text)),
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
