"""MobileNetV3-Large from mmpretrain, 3.0 M parameters without classifier, 224 px.

The tap is the input of the last h-swish, 960 channels wide. (The layer with 1280 channels comes
after pooling and is part of the classifier.) The tap is a linear function of 160 channels, so its
rank is at most 160.
"""

student = dict(
    name="mobilenetv3",
    backbone=dict(type="mmpretrain.MobileNetV3", arch="large", norm_eval=False),
    width=960,
    input_px=224,
    tap="last_pre_activation",
    # The last output at each of the strides, before the 1x1 convolution to 960 channels.
    pyramid=dict(out_indices=(3, 6, 12, 15), channels=(24, 40, 112, 160), strides=(4, 8, 16, 32)),
    # This backbone class has no dilation argument; segmentation reads several levels instead.
    dilated=None,
)
