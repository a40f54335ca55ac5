"""Defaults that --help shows, without the imports of the modules that use them; a test holds them equal."""

DEMO_TOKENS = 819_200
EVAL_TOKENS = 65_536
EXPORT_TOKENS = 32_768
PROMPTS = 16
