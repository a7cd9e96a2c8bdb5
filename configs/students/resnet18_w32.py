"""ResNet-18 of half width (32-64-128-256 channels), 2.8 M parameters, 64 px: the pocket student."""

student = dict(
    name="resnet18_w32",
    backbone=dict(
        type="mmpretrain.ResNet",
        depth=18,
        stem_channels=32,
        base_channels=32,
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    width=256,
    input_px=64,
    tap="last_pre_activation",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(32, 64, 128, 256), strides=(4, 8, 16, 32)),
    # For segmentation recipes with dilate=True: the last map has stride 8, as in KDEP.
    dilated=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
)
