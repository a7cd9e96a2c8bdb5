"""EfficientNet-Lite0 (3.4 M parameters without classifier): a student with ImageNet weights.

The same architecture's own supervised ImageNet-1k weights (1.28 M labelled images) are the method
`imagenet`. The tap is before the last ReLU6, as KDEP taps MobileNetV2.
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
    dilated=dict(output_stride=8),
)
