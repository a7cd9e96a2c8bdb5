"""ResNet-18 of three quarters width (48-96-192-384): the teacher assistant of the pocket suites.

Its FLOPs and width are between those of the teacher EfficientNet-Lite0 and of the student
`resnet18_w32`; its 6.3 M parameters are more than the teacher's. It is only used as a teacher and
is not evaluated on the tasks.
"""

from mmengine.config import read_base

with read_base():
    from .resnet18_w32 import student

student.update(
    name="resnet18_w48",
    width=384,
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(48, 96, 192, 384), strides=(4, 8, 16, 32)),
)
student["backbone"].update(stem_channels=48, base_channels=48)
