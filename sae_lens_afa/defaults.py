"""Sizes that a function and its command have as default; apart, because --help shows them without heavy imports."""

DEMO_TOKENS = 614_400  # 300 batches
DEMO_EVAL_TOKENS = 49_152  # the held-out chapters, once
EVAL_TOKENS = 65_536
EXPORT_TOKENS = 32_768
PROMPTS = 16  # prompts per forward pass
