"""Environments of other packages beside ours, and an SAE of the bundled model to give to them."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sae_lens_afa as afa

ROOT = Path(__file__).parents[2]
TORCH = torch.__version__.partition("+")[0]


class Environment:
    """A virtual environment with this package, the tests' torch and a client; `folder` is where its programs run."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.python, self.folder = home / "bin" / "python", folder

    def run(self, *args: str) -> str:
        """Run Python in it, offline, and return what it printed."""
        env = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(self.folder)}
        done = subprocess.run(
            [str(self.python), *args], cwd=self.folder, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done.stdout

    def example(self, name: str, *args: str) -> str:
        """Run one of the examples of docs/clients.md."""
        return self.run(str(ROOT / "examples" / "clients" / f"{name}.py"), *args)


def install(home: Path, *requirements: str) -> None:
    """Make an environment; torch first, so that nothing asks for another one."""
    venv.create(home, with_pip=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check"]
    for wanted in ([f"torch=={TORCH}"], [f"torch=={TORCH}", "-e", f"{ROOT}[fast]", *requirements]):
        done = subprocess.run([*pip, "install", *wanted], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-6000:]
    if torch.version.cuda is None:  # PyPI's builds of these want CUDA's libraries; no client here needs them
        subprocess.run([*pip, "uninstall", "-y", "torchvision", "torchaudio"], check=True, capture_output=True)


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Callable[..., Environment]:
    """Return the environment of a client, made when it is first asked for."""
    kept = os.environ.get("CLIENTS_ENVIRONMENTS")  # a folder in which they outlive the session
    homes = Path(kept) if kept else tmp_path_factory.mktemp("environments")

    def of(client: str, *more: str) -> Environment:
        home = homes / f"{client}-py{sys.version_info.major}{sys.version_info.minor}"
        if not (home / "ready").is_file():
            install(home, client, *more)
            (home / "ready").touch()
        return Environment(home, tmp_path_factory.mktemp(client.partition("=")[0]))

    return of


@pytest.fixture(scope="session")
def saes(tmp_path_factory) -> dict[str, str]:
    """Folders of SAEs of blocks.2.hook_resid_pre, with features in random directions, by architecture."""
    torch.manual_seed(0)
    folders = {}
    for name, cls, cfg in (
        ("top_afa", afa.TopAFATrainingSAE, afa.TopAFATrainingSAEConfig(d_in=192, d_sae=768)),
        ("afa_threshold", afa.AFAThresholdTrainingSAE, afa.AFAThresholdTrainingSAEConfig(d_in=192, d_sae=768)),
        ("afa_pursuit", afa.AFAPursuitTrainingSAE, afa.AFAPursuitTrainingSAEConfig(d_in=192, d_sae=768)),
    ):
        if name != "top_afa":
            cfg.threshold_scale = 0.7  # directions that were not trained stand out less
        sae = cls(cfg)
        nn.init.normal_(sae.W_dec)
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
        if "W_enc" in dict(sae.named_parameters()):
            sae.W_enc.data.copy_(sae.W_dec.data.T)
        about = sae.cfg.metadata
        about.hook_name, about.context_size, about.prepend_bos = "blocks.2.hook_resid_pre", 128, True
        about.model_name = "kjv_gpt2"
        folders[name] = str(tmp_path_factory.mktemp("saes") / name)
        sae.save_inference_model(folders[name])
    return folders
