"""EfficientNet-B0, ImageNet-1k supervised.

Weights: torchvision's `IMAGENET1K_V1`, 20 MB from
https://download.pytorch.org/models/efficientnet_b0_rwightman-7f5810bc.pth
The file name contains the first digits of its SHA-256, which are verified. A copy in torch.hub's
folder is used; otherwise set `weights=` to a path, or `download=True`.
Tap (tap="read"): after the last activation. KDEP's tap, before the activation (tap="before"), is a
linear function of 320 channels, so singular vectors beyond rank 320 would be noise.
"""

from kdep_bench.teachers.torchvision_models import Torchvision

teacher = dict(
    type=Torchvision,
    name="efficientnet_b0",
    model="efficientnet_b0",
    input_px=224,
    args=dict(hub="IMAGENET1K_V1"),
    weights=None,
    sha256="7f5810bc",
    download=False,
    tap="read",
    maps={},
    width=1280,
    has_logits=True,
    card=dict(
        pretraining="ImageNet-1k, 1.28 M labelled images",
        trained_on=["imagenet"],
        labels_used=True,
        classes=1000,
        top1=0.77692,
        top1_source="ImageNet-1k validation, torchvision's own figure for these weights",
        licence="BSD-3-Clause (code); torchvision states none for the weights",
        source="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.efficientnet_b0.html",
    ),
)
