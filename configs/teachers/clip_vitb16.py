"""CLIP ViT-B/16, vision tower only, from transformers (`pip install 'kdep_bench[hf]'`).

Weights: huggingface.co/openai/clip-vit-base-patch16 (that file also contains the text tower); set
`weights=` to the path of the file, or `download=True`. Tap: the class token after the final
LayerNorm, before CLIP's projection.
"""

from kdep_bench.teachers.huggingface import HuggingFace

teacher = dict(
    type=HuggingFace,
    name="clip_vitb16",
    model="openai/clip-vit-base-patch16",
    input_px=224,
    args=dict(
        model_type="clip_vision_model",
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        patch_size=16,
        image_size=224,
        hidden_act="quick_gelu",
    ),
    weights=None,
    sha256=None,
    download=False,
    prefix="vision_model.",
    drop=[],
    tap="before",
    maps={},
    width=768,
    has_logits=False,
    card=dict(
        pretraining="400 M image-text pairs from the web; captions, no class labels",
        trained_on=["WIT-400M"],
        labels_used=False,
        top1=0.686,
        top1_source="ImageNet-1k zero-shot, reported in the CLIP paper",
        licence="MIT (https://github.com/openai/CLIP)",
        source="https://arxiv.org/abs/2103.00020",
    ),
)
