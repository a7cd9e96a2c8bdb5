"""MobileNetV2 with width multiplier 0.5, 64 px: the second student of the pocket suites.

The last 1x1 convolution has 1280 channels at every width below 1, as in the MobileNetV2 paper. The
tap is the input of the last ReLU6, as in KDEP. It is a linear function of 160 channels, so the
student can match at most 160 of the target's 1280 directions.
"""

student = dict(
    name="mobilenetv2_w50",
    backbone=dict(
        type="mmpretrain.MobileNetV2",
        widen_factor=0.5,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    width=1280,
    input_px=64,
    tap="last_pre_activation",
    # Outputs of layer2, layer3, layer5 and layer7, the last ones at strides 4, 8, 16 and 32.
    pyramid=dict(out_indices=(1, 2, 4, 6), channels=(16, 16, 48, 160), strides=(4, 8, 16, 32)),
    # This backbone class has no dilation argument; segmentation reads several levels instead.
    dilated=None,
)
