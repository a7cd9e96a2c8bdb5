"""EfficientNet-Lite0 without its last 1x1 convolution: 3.0 M parameters, 320 channels at stride 32.

The 1280 channels of the whole network are a linear map of these 320, so before its activation that
feature has rank 320 at most. With a target of 1280 directions, which the power transform brings to
nearly equal scale, the whole network hardly starts to learn; the trunk's target is the leading 320.
Its last block ends in a projection without an activation: the tap is the output itself. Detectors
and segmenters read this trunk anyway. The method `imagenet` loads the trunk of the network's own
ImageNet-1k weights.
"""

from mmengine.config import read_base

with read_base():
    from .efficientnet_lite0 import student

student.update(name="efficientnet_lite0_trunk", width=320, tap="output")
student.backbone.update(out_indices=(3,), head=False)
