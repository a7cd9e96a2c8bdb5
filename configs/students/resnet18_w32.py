"""ResNet-18 of half width (32-64-128-256, stem 32), 2.8 M parameters: the pocket student."""

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
    # For a segmentation recipe with dilation to stride 8, as in the paper for ResNet-18.
    dilated=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
)
