"""Tiny version of pocket_det: the same code, a handful of steps; its score means nothing."""

from mmengine.config import read_base

with read_base():
    from .pocket_det import task

task.update(name="smoke_det")
task["recipe"].update(iters=10, batch=2, warmup=4)
