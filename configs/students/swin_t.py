"""Swin-T from timm, 27.5 M parameters without classifier, 224 px; it pads images of other sizes.

The network does not end in an activation; the tap is the last map after the final LayerNorm.
"""

from kdep_bench.students.timm_backbone import TimmBackbone

student = dict(
    name="swin_t",
    backbone=dict(
        type=TimmBackbone,
        model="swin_tiny_patch4_window7_224",
        strict_img_size=False,
        always_partition=True,
    ),
    width=768,
    input_px=224,
    tap="output",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(96, 192, 384, 768), strides=(4, 8, 16, 32)),
    dilated=None,
)
