"""Tiny version of pocket_det_fog with 10 steps, to test the code; its score is meaningless."""

from mmengine.config import read_base

with read_base():
    from .pocket_det_fog import task

task.update(name="smoke_det_fog")
task["recipe"].update(iters=10, batch=2, warmup=4)
