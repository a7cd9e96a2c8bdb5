"""Microsoft Vision Model ResNet-50, the paper's main teacher, from a file that you provide.

Command   teacher=dict(base="microsoft_resnet50", weights="MicrosoftVision-ResNet50.pth")

KDEP's README links the file (`pretrained-models/MicrosoftVision-ResNet50.pth` in its scripts). We
have not seen its layout: a wrong prefix or unexpected names are reported before any work, and
`prefix`, `key` and `drop` fix them. Tap: before the last ReLU, as in KDEP; 2048 wide. The loss
weight of the public code is 3.0 for this teacher.
"""

from kdep_bench.teachers.checkpoint import Checkpoint

teacher = dict(
    type=Checkpoint,
    name="microsoft_resnet50",
    model="torchvision/resnet50",
    input_px=224,
    weights=None,
    sha256=None,
    prefix="",
    key=None,
    drop=[],
    tap="before",
    maps={},
    width=2048,
    has_logits=False,
    card=dict(
        pretraining="ImageNet-22k, COCO and two web-supervised sets, multi-task",
        trained_on=["imagenet21k", "coco"],
        labels_used=True,
        top1=0.7385,
        top1_source="ImageNet-1k linear probe, reported by Microsoft",
        licence="not stated where its accuracy is; see the file's own terms",
        source="https://www.microsoft.com/en-us/research/blog/microsoft-vision-model-resnet-50-"
        "combines-web-scale-data-and-multi-task-learning-to-achieve-state-of-the-art",
    ),
)
