"""Tiny version of pocket_probe: the same code, a coarser grid; its score means nothing."""

from mmengine.config import read_base

with read_base():
    from .pocket_probe import task

task.update(name="smoke_probe")
task["recipe"].update(c_grid=(1e-3, 1e-1), max_iter=200)
