"""Tiny version of pocket_photos with two values of C, to test the code; no meaningful score."""

from mmengine.config import read_base

with read_base():
    from .pocket_photos import task

task.update(name="smoke_photos")
task["recipe"].update(c_grid=(1e-3, 1e-1), max_iter=200)
