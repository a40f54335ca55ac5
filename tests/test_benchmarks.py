"""The benchmarks run, at a size at which their figures mean nothing."""

from __future__ import annotations

import bz2
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.language_model_activations import activations, text_of, whitening, write

ROOT = Path(__file__).parents[1]


def run(*command: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_the_table_has_every_goal(tmp_path):
    file = tmp_path / "found.json"
    printed = run(
        *("-m", "benchmarks", "--rows", "selection", "step", "inference", "memory", "--json", str(file)),
        *("--rounds", "2", "--batch", "70", "--d-in", "32", "--d-sae", "640"),
    )
    found = json.loads(file.read_text())
    assert {"cpu", "threads", "torch", "numba", "sae-lens", "THP_MEM_ALLOC_ENABLE"} <= set(found["setting"])
    assert len(found["goals"]) == 12
    for row in found["goals"]:
        assert row["what"] in printed
        if "on GPU" in row["what"]:
            assert row["verdict"] == "not measured"
        else:
            assert row["verdict"] in ("goal", "stretch", "MISSED")
            assert 0 < row["figure"]["q25"] <= row["figure"]["median"] <= row["figure"]["q75"]


def test_dead_features_compares_all_architectures(tmp_path):
    sizes = {
        "seeds": 2, "steps": 30, "batch": 64, "d-in": 8, "features": 32, "d-sae": 32, "dead-feature-window": 5,
        "eval-tokens": 256, "k": 2,
    }  # fmt: skip
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    printed = run("-m", "benchmarks.dead_features", *flags, "--output", str(tmp_path))
    result = json.loads((tmp_path / "dead_features.json").read_text())
    table = (tmp_path / "dead_features.md").read_text()
    assert table in printed
    assert len(result["runs"]) == 2
    for found in result["runs"]:
        assert len(found) == 5
        for name, figures in found.items():
            assert f"| {name} |" in table
            assert 0 <= figures["dead_latents"] <= 32
            assert figures["training_l0"] <= 2


def test_the_committed_results_are_of_the_committed_settings():
    script = "import json, sys; sys.argv = ['x']; from benchmarks.dead_features import *; "
    script += "print(json.dumps(settings(parse())))"
    result = json.loads((ROOT / "docs/results/dead_features.json").read_text())
    assert result["settings"] == json.loads(run("-c", script))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_allocation_measures_time_and_memory():
    script = "import json; from benchmarks.allocation import measure; print(json.dumps(measure((512, 256, 4), 2)))"
    rows = json.loads(run("-c", script).splitlines()[-1])
    assert [row["variant"] for row in rows] == [
        "batchtopk", "mutual_choice", "feature_choice, uniform", "feature_choice, zipf",
    ]  # fmt: skip
    assert rows[0]["time_ratio_to_batchtopk"]["median"] == 1


@pytest.mark.parametrize(("flag", "n_runs"), [((), 54), (("--from-truth",), 4)])
def test_threshold_variants_all_train_and_load(tmp_path, flag, n_runs):
    run("-m", "benchmarks.threshold_variants", "--world", "tiny", "--steps", "12", "--seed", "0", *flag,
        "--output", str(tmp_path))  # fmt: skip
    table = pd.read_csv(tmp_path / "runs.csv")
    assert len(table) == n_runs
    assert set(table["status"]) == {"ok"}
    assert "variants.png" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "variants.png").stat().st_size > 10_000
    if flag:
        # Twelve steps with a small learning rate leave the true features what they were.
        assert table["mcc"].min() > 0.95


def test_activations_of_a_language_model_become_files(tmp_path):
    tokens = torch.randint(50, (6, 5))

    class Model:
        def run_with_cache(self, rows, names_filter, stop_at_layer):
            assert (names_filter, stop_at_layer) == ("blocks.9.hook_resid_post", 10)
            return None, {names_filter: rows[..., None] * torch.ones(3)}

    first, second = activations(Model(), tokens, "blocks.9.hook_resid_post", 4)
    assert torch.equal(torch.cat([first, second])[:, 0], tokens[:, 1:].flatten().float())
    train, test = torch.randn(500, 8) @ torch.randn(8, 8), torch.randn(9, 8)
    train -= train.mean(0)
    white = train @ whitening(train)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(8), atol=1e-3, rtol=0)
    write(tmp_path, train, test)
    files = [load_file(tmp_path / f"{name}.safetensors")["activations"] for name in ("train", "test")]
    assert files[0].norm(dim=-1).mean().item() == pytest.approx(8**0.5, rel=1e-5)
    torch.testing.assert_close(files[1], test * (files[0][0, 0] / train[0, 0]))


def test_the_words_of_a_dump_are_those_of_its_articles(tmp_path):
    page = (
        "{{Box|a={{b}}}}The '''[[moon|Moon]]'''&lt;ref&gt;see [http://x y]&lt;/ref&gt; is [[round]].\n"
        "== More ==\n* a list\nwords"
    )
    dump = tmp_path / "articles.xml.bz2"
    dump.write_bytes(bz2.compress(f"<page><text x='y'>{page}</text><text>#REDIRECT [[a]]</text></page>".encode()))
    assert text_of(dump).split() == ["The", "Moon", "is", "round.", "More", "words"]
    plain = tmp_path / "plain.txt"
    plain.write_text("as it is")
    assert text_of(plain) == "as it is"
