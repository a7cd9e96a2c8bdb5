"""Swin-B, ImageNet-1k supervised.

Weights: torchvision's `IMAGENET1K_V1`, 335 MB from
https://download.pytorch.org/models/swin_b-68c6b09e.pth
The file name contains the first digits of its SHA-256, which are verified. A copy in torch.hub's
folder is used; otherwise set `weights=` to a path, or `download=True`.
Tap: the last map after the final LayerNorm, averaged over positions.
"""

from kdep_bench.teachers.torchvision_models import Torchvision

teacher = dict(
    type=Torchvision,
    name="swin_b",
    model="swin_b",
    input_px=224,
    args=dict(hub="IMAGENET1K_V1"),
    weights=None,
    sha256="68c6b09e",
    download=False,
    tap="before",
    maps={},
    width=1024,
    has_logits=True,
    card=dict(
        pretraining="ImageNet-1k, 1.28 M labelled images",
        trained_on=["imagenet"],
        labels_used=True,
        classes=1000,
        top1=0.83582,
        top1_source="ImageNet-1k validation, torchvision's own figure for these weights",
        licence="BSD-3-Clause (code); torchvision states none for the weights",
        source="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.swin_b.html",
    ),
)
