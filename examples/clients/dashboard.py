"""A page of sae-dashboard about features of an SAE, by way of its jumprelu stand-in."""

import sys

import torch
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE

import sae_lens_afa as afa

folder, *_ = sys.argv[1:]
model, sae = afa.demo.load_model(), SAE.load_from_disk(folder)
hook = sae.cfg.metadata.hook_name
prompts = [model.to_tokens(chapter)[:, :128] for chapter in afa.demo.load_text().held_out]
tokens = torch.cat([prompt for prompt in prompts if prompt.shape[1] == 128])
with torch.no_grad():
    acts = [model.run_with_cache(prompt, names_filter=hook)[1][hook].flatten(0, 1) for prompt in tokens.split(16)]

stand_in = afa.export_jumprelu(sae, acts, progress=False)
print(afa.jumprelu_report(stand_in))
cfg = SaeVisConfig(hook_point=hook, features=list(range(8)), minibatch_size_tokens=16, device="cpu", dtype="float32")
save_feature_centric_vis(SaeVisRunner(cfg).run(stand_in, model, tokens), filename="dashboard.html")
