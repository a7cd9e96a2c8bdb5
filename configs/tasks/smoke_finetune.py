"""Tiny version of pocket_finetune with one epoch, to test the code; its score is meaningless."""

from mmengine.config import read_base

with read_base():
    from .pocket_finetune import task

task.update(name="smoke_finetune")
task["recipe"].update(epochs=1)
