"""SAEBench's core evaluation and sparse probing, offline, of an SAE on the bundled model and text."""

import json
import sys

import sae_lens_afa as afa
from sae_lens_afa.demo.chapters import held_out_dataset
from sae_lens_afa.interop import saebench_core, saebench_sparse_probing

folder, *_ = sys.argv[1:]
model = afa.demo.load_model()
core = saebench_core(folder, "eval_results/core", model=model, dataset=held_out_dataset(), tokens=8192)

chapters = [chapter[:300] for chapter in afa.demo.load_text().train]
texts = {"Old Testament": chapters[:200], "New Testament": chapters[-200:]}
probing = saebench_sparse_probing(folder, texts, "eval_results/sparse_probing", model=model)

for path in (core, probing):
    for group, metrics in json.loads(path.read_text())["eval_result_metrics"].items():
        print(group, {name: round(value, 3) for name, value in metrics.items() if value is not None})
