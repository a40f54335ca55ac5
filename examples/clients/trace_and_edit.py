"""nnsight: read a Hugging Face model's features, ablate some, and keep an SAE in the model."""

import sys

import torch
from nnsight import LanguageModel
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

import sae_lens_afa as afa

folder, *_ = sys.argv[1:]
sae = SAE.load_from_disk(folder)  # of blocks.2.hook_resid_pre, which is what h[1] hands on
path = str(afa.demo.model_folder())
hf = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
model = LanguageModel(hf, tokenizer=AutoTokenizer.from_pretrained(path))
prompt = "And God said, Let there be"

with torch.no_grad(), model.trace(prompt):
    features = sae.encode(model.transformer.h[1].output).save()
    plain = model.lm_head.output.save()
strongest = features[0, -1].topk(8).indices

with torch.no_grad(), model.trace(prompt):
    x = model.transformer.h[1].output
    acts = sae.encode(x)
    error = x - sae.decode(acts)
    acts[:, -1, strongest] = 0.0
    model.transformer.h[1].output = sae.decode(acts) + error
    ablated = model.lm_head.output.save()

with model.edit() as (_, with_sae):
    with_sae.transformer.h[1].output = sae(with_sae.transformer.h[1].output)
with torch.no_grad(), with_sae.trace(prompt):
    spliced = with_sae.lm_head.output.save()
with torch.no_grad(), model.trace(prompt):
    after = model.lm_head.output.save()

hooked = afa.demo.load_model().run_with_cache(model.tokenizer(prompt, return_tensors="pt")["input_ids"])[1]
torch.testing.assert_close(features, sae.encode(hooked["blocks.2.hook_resid_pre"]), atol=1e-3, rtol=1e-3)
assert torch.equal(after, plain)
print(f"features of the last token: {int((features[0, -1] != 0).sum())}, strongest {strongest.tolist()}")
for name, logits in (("without the strongest", ablated), ("with the SAE in place", spliced)):
    print(f"{name}: logits of the last token move by up to {(logits - plain)[0, -1].abs().max():.2f}")
