"""DINOv2 ViT-B/14 (distilled from ViT-g), trained without labels.

Weights: timm's copy, huggingface.co/timm/vit_base_patch14_dinov2.lvd142m; set `weights=` to the
path of its model.safetensors, or `download=True`. Position embeddings are resized from 37x37 to
16x16 patches. Tap: the class token after the final LayerNorm.
"""

from kdep_bench.teachers.timm_models import Timm

teacher = dict(
    type=Timm,
    name="dinov2_vitb14",
    model="vit_base_patch14_dinov2.lvd142m",
    input_px=224,
    args=dict(dynamic_img_size=True),
    weights=None,
    sha256=None,
    download=False,
    tap="before",
    maps={},
    width=768,
    has_logits=False,
    card=dict(
        pretraining="LVD-142M, 142 M images without labels",
        trained_on=["LVD-142M"],
        labels_used=False,
        blocks=12,
        heads=12,
        top1=0.845,
        top1_source="ImageNet-1k linear evaluation, reported by its authors",
        licence="Apache-2.0",
        source="https://github.com/facebookresearch/dinov2 (README, pretrained models)",
    ),
)
