"""PASCAL VOC 07+12 detection, Faster R-CNN C4 (for ResNet-18).

Recipe and differences from the public code: configs/_base_/tasks/voc0712.py. Detector:
configs/_base_/models/faster_rcnn_c4.py.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.faster_rcnn_c4 import model
    from .._base_.tasks.voc0712 import task

task.update(name="voc0712_c4")
task["recipe"].update(head="c4", model=model)
