"""ResNet-18 of five eighths width (40-80-160-320): the smaller assistant of `weighted_assistants`.

It is between `resnet18_w32` and `resnet18_w48`, is only used as a teacher and is not evaluated on
the tasks.
"""

from mmengine.config import read_base

with read_base():
    from .resnet18_w32 import student

student.update(
    name="resnet18_w40",
    width=320,
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(40, 80, 160, 320), strides=(4, 8, 16, 32)),
)
student["backbone"].update(stem_channels=40, base_channels=40)
