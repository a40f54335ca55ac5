"""Sizes and names that rooms share without importing each other; --help shows the defaults among them."""

DEMO_TOKENS = 614_400  # 300 batches
DEMO_EVAL_TOKENS = 49_152  # the held-out chapters, once
EVAL_TOKENS = 65_536
EXPORT_TOKENS = 32_768
PROMPTS = 16  # prompts per forward pass
# Name of the bundled model in the metadata of SAEs that are trained on it; nothing loads it by this name.
BUNDLED_MODEL = "kjv_gpt2"
