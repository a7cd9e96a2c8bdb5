"""MobileNetV3-Large (3.0 M parameters without classifier), mmpretrain's, 224 px.

The tap is before the last h-swish, 960 wide; the 1280-wide layer of the architecture comes after
pooling and belongs to its classifier. The feature is a linear function of 160 channels.
"""

student = dict(
    name="mobilenetv3",
    backbone=dict(type="mmpretrain.MobileNetV3", arch="large", norm_eval=False),
    width=960,
    input_px=224,
    tap="last_pre_activation",
    # The last outputs at strides 4, 8, 16 and 32 before the 1x1 convolution to 960 channels.
    pyramid=dict(out_indices=(3, 6, 12, 15), channels=(24, 40, 112, 160), strides=(4, 8, 16, 32)),
    # This backbone class has no dilation argument: segmentation reads several levels instead.
    dilated=None,
)
