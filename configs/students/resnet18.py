"""ResNet-18 (11.2 M parameters without classifier), mmpretrain's: KDEP's main student, 224 px."""

student = dict(
    name="resnet18",
    backbone=dict(
        type="mmpretrain.ResNet",
        depth=18,
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    width=512,
    input_px=224,
    tap="last_pre_activation",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(64, 128, 256, 512), strides=(4, 8, 16, 32)),
    # Dilated to stride 8, as in KDEP's segmentation.
    dilated=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
)
