"""sae-probes, offline: it brings its data sets, and takes activations that are there already."""

import json
import sys

from sae_lens import SAE
from sae_probes import run_sae_evals
from sae_probes.generate_model_activations import ensure_dataset_activations

import sae_lens_afa as afa

folder, *_ = sys.argv[1:]
model, sae = afa.demo.load_model(), SAE.load_from_disk(folder)
where = {"model_name": "kjv_gpt2", "model_cache_path": "activations", "device": "cpu"}
hook, datasets = sae.cfg.metadata.hook_name, ["119_us_state_TX"]

# With these files there, sae-probes does not load a model by its name, which would need the Hub.
ensure_dataset_activations(
    dataset_short_names=datasets, hook_names=[hook], max_seq_len=model.cfg.n_ctx, model=model, **where
)
run_sae_evals(
    sae, hook_name=hook, reg_type="l1", setting="normal", ks=[1, 16], datasets=datasets, results_path="probes", **where
)
with open(f"probes/sae_probes_kjv_gpt2/normal_setting/{datasets[0]}_{hook}_l1.json") as file:
    print({f"k = {result['k']}": round(result["test_auc"], 3) for result in json.load(file)})
