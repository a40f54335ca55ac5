"""SAEBench, imported when it is first used, and an SAE in the form that it reads."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from sae_lens.saes.sae import SAE

from sae_lens_afa.loading.inference import inference_view
from sae_lens_afa.loading.saes import load_sae


def sae_bench(module: str) -> Any:
    """Return a module of SAEBench, which this package does not depend on.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import_module("sae_bench")
    except ModuleNotFoundError as error:
        raise ImportError("SAEBench is not installed here: pip install sae-bench") from error
    return import_module(f"sae_bench.{module}")


def prepared(sae: str | Path | SAE[Any], name: str | None, device: str) -> tuple[str, SAE[Any]]:
    """Return a name and a copy of an SAE, for SAEBench to write into; decoder rows are at norm 1.

    SAEBench folds the norms of SAEs that it loads itself and only warns about those of others.
    """
    if isinstance(sae, str | Path):
        name = name or Path(sae).name
        sae = load_sae(sae, device, where=f"sae {sae}")
    else:
        sae = inference_view(copy.deepcopy(sae).to(device))
    with torch.no_grad():
        sae.fold_W_dec_norm()
    return name or sae.cfg.architecture(), sae.eval()


def result_file(output: str | Path, name: str, *, overwrite: bool) -> Path:
    """Return the file that SAEBench writes for an SAE of this name.

    Raises:
        FileExistsError: it is there, and `overwrite` is off.
    """
    path = Path(sae_bench("sae_bench_utils.general_utils").get_results_filepath(str(output), name, "custom_sae"))
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there: pass overwrite=True, or give another output or name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def versions() -> dict[str, str]:
    """Return what SAEBench notes about a run, beside its settings."""
    utils = sae_bench("sae_bench_utils")
    return {
        "eval_id": utils.get_eval_uuid(),
        "sae_lens_version": utils.get_sae_lens_version(),
        "sae_bench_commit_hash": utils.get_sae_bench_version(),
    }


@contextmanager
def shapes_unchecked() -> Generator[None]:
    """Switch jaxtyping's checks off for a while.

    They refuse SAEBench 0.6.0's own probes (seen with jaxtyping 0.2.38 to 0.3.11, beartype 0.19 to 0.23): a function
    without a scope of its own inherits its caller's sizes, and the caller has counted the texts of one class, not two.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
