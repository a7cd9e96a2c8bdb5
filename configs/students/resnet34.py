"""ResNet-34 from mmpretrain, 21.3 M parameters without classifier, 224 px."""

student = dict(
    name="resnet34",
    backbone=dict(
        type="mmpretrain.ResNet",
        depth=34,
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    width=512,
    input_px=224,
    tap="last_pre_activation",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(64, 128, 256, 512), strides=(4, 8, 16, 32)),
    # For segmentation recipes with dilate=True: the last map has stride 8, as in KDEP.
    dilated=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
)
