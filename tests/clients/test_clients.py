"""Other people's packages on our SAEs, each in an environment of its own; minutes, and a network to install from."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.clients
ARCHITECTURES = ("top_afa", "afa_threshold", "afa_pursuit")


@pytest.fixture
def bench(environment):
    return environment("sae-bench==0.6.0")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saebench_core_and_sparse_probing(bench, saes, architecture):
    said = bench.example("saebench", saes[architecture])
    assert "model_performance_preservation {'ce_loss_score'" in said
    for part, sections in (("core", ("sparsity", "reconstruction_quality")), ("sparse_probing", ("llm", "sae"))):
        result = bench.folder / "eval_results" / part / f"{architecture}_custom_sae_eval_results.json"
        read = json.loads(result.read_text())
        assert set(sections) <= read["eval_result_metrics"].keys()
        assert read["sae_cfg_dict"]["architecture"] == architecture
    assert read["eval_result_metrics"]["llm"]["llm_test_accuracy"] > 0.8


def test_saebench_by_command(bench, saes):
    call = ["saebench", "--demo", "--sae", saes["top_afa"], "--output", "by_command", "--tokens", "2048"]
    assert "saved as by_command/top_afa_custom_sae_eval_results.json" in bench.run(
        "-c", "from sae_lens_afa.cli import main; main()", *call
    )


# SAEBench's own loop over SAEs takes ours as it takes its own, and text from a folder; it only wants a model that it
# can load by name.
OWN_LOOP = """
import json, os, sys
from unittest import mock
import sae_lens_afa as afa
from sae_bench.evals.core import main
from sae_lens import SAE

os.makedirs("chapters")
with open("chapters/train.jsonl", "w") as file:
    file.writelines(json.dumps({"text": chapter}) + "\\n" for chapter in afa.demo.load_text().held_out)
model = afa.demo.load_model()
with mock.patch.object(main.HookedTransformer, "from_pretrained_no_processing", lambda *args, **kwargs: model):
    done = main.multiple_evals(
        [("ours", SAE.load_from_disk(sys.argv[1]))], n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1, dataset="./chapters", device="cpu", output_folder="own_loop",
        compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
    )
print(sorted(done[0]["metrics"]))
"""


def test_saebench_own_loop(bench, saes):
    assert "'sparsity'" in bench.run("-c", OWN_LOOP, saes["top_afa"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sae_probes(bench, saes, architecture):  # which SAEBench installs
    said = bench.example("probes", saes[architecture])
    assert "119_us_state_TX_blocks.2.hook_resid_pre_l1 {'k = 1'" in said


# Newer pyarrow wants numpy 2, which sae-dashboard's other requirements do not allow.
@pytest.fixture
def dashboard(environment):
    return environment("sae-dashboard==0.8.0", "pyarrow<26")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sae_dashboard(dashboard, saes, architecture):
    assert "Jaccard" in dashboard.example("dashboard", saes[architecture])
    assert (dashboard.folder / "dashboard.html").stat().st_size > 100_000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nnsight(environment, saes, architecture):
    said = environment("nnsight==0.8.1").example("trace_and_edit", saes[architecture])
    assert "with the SAE in place: logits of the last token move by up to" in said
