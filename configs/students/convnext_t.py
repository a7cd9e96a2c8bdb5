"""ConvNeXt-T from timm, 27.8 M parameters without classifier, 224 px.

The network does not end in an activation. The tap is the input of its classifier: the last map,
averaged over positions and then normalised (LayerNorm). Detection and segmentation read the maps
before that norm.
"""

from kdep_bench.students.timm_backbone import TimmBackbone

student = dict(
    name="convnext_t",
    backbone=dict(type=TimmBackbone, model="convnext_tiny"),
    width=768,
    input_px=224,
    tap="output",
    pyramid=dict(out_indices=(0, 1, 2, 3), channels=(96, 192, 384, 768), strides=(4, 8, 16, 32)),
    dilated=dict(output_stride=8),  # for segmentation recipes with dilate=True
)
