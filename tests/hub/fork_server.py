"""Runs scripts in fresh processes without paying each time for the imports.

Started with the environment that huggingface_hub reads when it is imported (HF_ENDPOINT, HF_HOME, ...), it imports what
every script needs and then forks once per line of JSON on its standard input: {"code", "env", "cwd", "output"}. It
answers with the exit status. Scripts find `afa`, `torch` and `make`, which makes a small SAE, at hand.
"""

import json
import os
import sys
import time
import traceback

import torch

import sae_lens_afa as afa

# What scripts and the command import when they use it.
import sae_lens_afa.cli
import sae_lens_afa.hub.push_folders
import sae_lens_afa.reports.evaluation

for name in afa.__all__:
    getattr(afa, name)


def make(seed: int = 0, **settings) -> afa.TopAFATrainingSAE:
    torch.manual_seed(seed)
    cfg = afa.TopAFATrainingSAEConfig(**{"d_in": 8, "d_sae": 32, "decoder_init_norm": 0.5, **settings})
    cfg.metadata.model_name, cfg.metadata.hook_name = "gpt2-small", "blocks.6.hook_resid_pre"
    cfg.metadata.dataset_path = "Skylion007/openwebtext"
    return afa.TopAFATrainingSAE(cfg)


def shortly(seconds: float, sleep=time.sleep) -> None:
    """Wait as huggingface_hub and we do between attempts, a hundred times as fast."""
    sleep(seconds / 100)


time.sleep = shortly
AT_HAND = {"afa": afa, "torch": torch, "make": make}


def run(job: dict) -> None:
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    status = 1
    try:
        exec(compile(job["code"], "<script>", "exec"), {"__name__": "__main__", **AT_HAND})
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
