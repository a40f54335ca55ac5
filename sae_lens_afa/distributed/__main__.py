"""`torchrun --nproc-per-node N -m sae_lens_afa.distributed ...`: `sae-lens-afa train ...` on N ranks."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    runpy.run_module("sae_lens_afa.cli", run_name="__main__")
