"""EfficientNet-Lite0, 3.4 M parameters without classifier, 64 px.

For this architecture, supervised ImageNet-1k weights (1.28 M labelled images) are available; the
method `imagenet` uses them. The tap is the input of the last ReLU6, as KDEP's for MobileNetV2.
"""

student = dict(
    name="efficientnet_lite0",
    backbone=dict(
        type="kdep_bench.students.efficientnet_lite.EfficientNetLite", variant=0, out_indices=(4,)
    ),
    width=1280,
    input_px=64,
    tap="last_pre_activation",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(24, 40, 112, 320), strides=(4, 8, 16, 32)),
    dilated=dict(output_stride=8),  # for segmentation recipes with dilate=True
)
