"""ResNet-50 from mmpretrain, 23.5 M parameters without classifier, 224 px."""

student = dict(
    name="resnet50",
    backbone=dict(
        type="mmpretrain.ResNet",
        depth=50,
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
    ),
    width=2048,
    input_px=224,
    tap="last_pre_activation",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(256, 512, 1024, 2048), strides=(4, 8, 16, 32)),
    # For segmentation recipes with dilate=True: the last map has stride 8, as in KDEP.
    dilated=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
)
