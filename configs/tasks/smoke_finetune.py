"""Tiny version of pocket_finetune: the same code, one epoch; its score means nothing."""

from mmengine.config import read_base

with read_base():
    from .pocket_finetune import task

task.update(name="smoke_finetune")
task["recipe"].update(epochs=1)
