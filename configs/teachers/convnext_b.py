"""ConvNeXt-B, ImageNet-1k supervised.

Weights: torchvision's `IMAGENET1K_V1`, 338 MB from
https://download.pytorch.org/models/convnext_base-6075fbad.pth
The file name contains the first digits of its SHA-256, which are verified. A copy in torch.hub's
folder is used; otherwise set `weights=` to a path, or `download=True`.
Tap: the input of the classifier, that is, the last map averaged over positions and then normalised
(LayerNorm).
"""

from kdep_bench.teachers.torchvision_models import Torchvision

teacher = dict(
    type=Torchvision,
    name="convnext_b",
    model="convnext_base",
    input_px=224,
    args=dict(hub="IMAGENET1K_V1"),
    weights=None,
    sha256="6075fbad",
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
        top1=0.84062,
        top1_source="ImageNet-1k validation, torchvision's own figure for these weights",
        licence="BSD-3-Clause (code); torchvision states none for the weights",
        source="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.convnext_base.html",
    ),
)
