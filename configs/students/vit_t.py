"""ViT-T/16 (5.5 M parameters without classifier), timm's, 224 px; takes other sizes by resizing
its position embeddings.

It ends in no activation: the tap is the class token after the last norm. Without a pyramid it
serves classification alone; a dense task refuses it before any training.
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
