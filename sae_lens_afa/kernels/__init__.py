"""Machine code, by numba for CPUs and by Triton for GPUs: imported only when it is about to be used."""
