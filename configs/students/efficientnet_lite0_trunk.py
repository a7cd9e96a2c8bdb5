"""EfficientNet-Lite0 without its last 1x1 convolution: 3.0 M parameters, 320 channels at stride 32.

Before their activation, the 1280 channels of the full network are a linear function of these 320
channels, so the rank of that feature is at most 320. As a student, the full network would have to
match 1280 SVD components, which PTS scales to nearly equal variance. It cannot, and learns little.
The target of this student is the first 320 SVD components.

The last block ends in a convolution without activation, so the tap is the output itself. Detectors
and segmenters read the same output. The method `imagenet` loads this part of the ImageNet-1k
weights.
"""

from mmengine.config import read_base

with read_base():
    from .efficientnet_lite0 import student

student.update(name="efficientnet_lite0_trunk", width=320, tap="output")
student.backbone.update(out_indices=(3,), head=False)
