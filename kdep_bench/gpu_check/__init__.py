"""Proves on a machine with a GPU, in minutes, what a CPU cannot show: `tools/gpu_check.py`."""
