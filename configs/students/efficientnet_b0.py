"""EfficientNet-B0 from timm, 4.0 M parameters without classifier, 224 px.

The tap is the input of the last SiLU, 1280 channels wide. It is a linear function of 320 channels,
so its rank is at most 320.
"""

from kdep_bench.students.timm_backbone import TimmBackbone

student = dict(
    name="efficientnet_b0",
    backbone=dict(type=TimmBackbone, model="efficientnet_b0"),
    width=1280,
    input_px=224,
    tap="net.bn2.act",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(24, 40, 112, 320), strides=(4, 8, 16, 32)),
    dilated=dict(output_stride=8),  # for segmentation recipes with dilate=True
)
