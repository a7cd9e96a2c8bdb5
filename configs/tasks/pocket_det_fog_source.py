"""The detectors of `pocket_det_fog`, scored on the clear test scenes, their source domain.

They are trained again, with the same result, because a transfer scores one set of images.
"""

from mmengine.config import read_base

with read_base():
    from .pocket_det_fog import task

task.update(name="pocket_det_fog_source")
task["recipe"].update(scored_on="source")
