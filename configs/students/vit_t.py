"""ViT-T/16 (5.5 M parameters without classifier), timm's, 224 px; position embeddings are resized.

It does not end in an activation: the tap is the class token after the last norm. Without pyramid
levels it can be used for classification only; a dense task refuses it before any training.
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
