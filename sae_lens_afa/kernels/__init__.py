"""Machine code for CPUs, by numba: functions of numpy arrays, imported only when one of them is about to be used."""
