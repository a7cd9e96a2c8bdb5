"""Checks that the project works on a GPU, in a few minutes; the command is `tools/gpu_check.py`."""
