"""Measurements against SAELens' own architectures: `python -m benchmarks`, and `python -m benchmarks.evals`."""

import os

# torch reads it once. Its own default is stated, because huge pages change all times and users rarely
# ask for them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0")
