"""COCO 2017 detection, Faster R-CNN FPN (for MobileNetV2).

Recipe and differences from the public code: configs/_base_/tasks/coco.py. Detector:
configs/_base_/models/faster_rcnn_fpn.py.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.faster_rcnn_fpn import model
    from .._base_.tasks.coco import task

task.update(name="coco_fpn")
task["recipe"].update(head="fpn", model=model)
