"""ResNet-50, ImageNet-1k supervised, torchvision's original training recipe.

Weights: torchvision's `IMAGENET1K_V1`, 98 MB from
https://download.pytorch.org/models/resnet50-0676ba61.pth
The file name contains the first digits of its SHA-256, which are verified. A copy in torch.hub's
folder is used; otherwise set `weights=` to a path, or `download=True`.
Tap: before the last ReLU, as in KDEP.
"""

from kdep_bench.teachers.torchvision_models import Torchvision

teacher = dict(
    type=Torchvision,
    name="resnet50",
    model="resnet50",
    input_px=224,
    args=dict(hub="IMAGENET1K_V1"),
    weights=None,
    sha256="0676ba61",
    download=False,
    tap="before",
    maps={},
    width=2048,
    has_logits=True,
    card=dict(
        pretraining="ImageNet-1k, 1.28 M labelled images",
        trained_on=["imagenet"],
        labels_used=True,
        classes=1000,
        top1=0.7613,
        top1_source="ImageNet-1k validation, torchvision's own figure for these weights",
        licence="BSD-3-Clause (code); torchvision states none for the weights",
        source="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html",
    ),
)
