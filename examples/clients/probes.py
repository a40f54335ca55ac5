"""sae-probes, offline: it brings its data sets, and takes activations that are there already."""

import json
import sys
from pathlib import Path

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
# A folder an SAE: results that are there are not made again, whichever SAE they are of.
results = Path("probes", Path(folder).name)
run_sae_evals(
    sae, hook_name=hook, reg_type="l1", setting="normal", ks=[1, 16], datasets=datasets, results_path=results, **where
)
for path in sorted(results.rglob("*.json")):
    print(path.stem, {f"k = {result['k']}": round(result["test_auc"], 3) for result in json.loads(path.read_text())})
