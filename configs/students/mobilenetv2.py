"""MobileNetV2 from mmpretrain, 2.2 M parameters without classifier, 224 px: KDEP's 2nd student."""

student = dict(
    name="mobilenetv2",
    backbone=dict(
        type="mmpretrain.MobileNetV2",
        widen_factor=1.0,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    width=1280,
    input_px=224,
    tap="last_pre_activation",
    # Outputs of layer2, layer3, layer5 and layer7, the last ones at strides 4, 8, 16 and 32.
    pyramid=dict(out_indices=(1, 2, 4, 6), channels=(24, 32, 96, 320), strides=(4, 8, 16, 32)),
    # This backbone class has no dilation argument; segmentation reads several levels instead.
    dilated=None,
)
