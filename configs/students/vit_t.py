"""ViT-T/16 from timm, 5.5 M parameters without classifier, 224 px.

For other image sizes the position embeddings are resized. The network does not end in an
activation; the tap is the class token after the final LayerNorm. It has no feature pyramid, so it
can be used for classification only; detection and segmentation tasks stop with an error.
"""

from kdep_bench.students.timm_backbone import TimmBackbone

student = dict(
    name="vit_t",
    backbone=dict(type=TimmBackbone, model="vit_tiny_patch16_224", dynamic_img_size=True),
    width=192,
    input_px=224,
    tap="output",
    dilated=None,
)
