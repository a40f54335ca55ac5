"""The command, as `python -m sae_lens_afa.cli`."""

from sae_lens_afa.cli import main

main()
