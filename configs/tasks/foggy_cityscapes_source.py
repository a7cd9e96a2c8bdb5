"""The detectors of `foggy_cityscapes`, scored on the clear validation scenes, their source domain.

They are trained again, with the same result, because a transfer scores one set of images.
"""

from mmengine.config import read_base

with read_base():
    from .foggy_cityscapes import task

task.update(name="foggy_cityscapes_source")
task["recipe"].update(scored_on="source")
