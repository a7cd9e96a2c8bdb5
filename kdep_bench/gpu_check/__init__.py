"""Checks of the project on a GPU, in minutes: `tools/gpu_check.py`."""
