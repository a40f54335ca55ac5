"""Defaults that --help shows, without the imports of the modules that use them; a test holds them equal."""

DEMO_TOKENS = 614_400
DEMO_EVAL_TOKENS = 49_152
EVAL_TOKENS = 65_536
EXPORT_TOKENS = 32_768
PROMPTS = 16
