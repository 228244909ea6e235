"""Loops that are compiled on the machine at hand: by numba for a CPU, by Triton for a GPU."""
