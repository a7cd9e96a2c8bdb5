"""Microsoft Vision Model ResNet-50, the paper's main teacher, from a file that you provide.

In a suite: teacher=dict(base="microsoft_resnet50", weights="MicrosoftVision-ResNet50.pth").

KDEP's README has a link to the file; KDEP's scripts call it
pretrained-models/MicrosoftVision-ResNet50.pth. This config was not tested with the file. If the
names of its tensors do not fit, an error is raised before training; then set `prefix`, `key` and
`drop` (see `kdep_bench.teachers.weights`).
Tap: before the last ReLU, as in KDEP; 2048 channels. The public code uses the loss weight 3.0 for
this teacher.
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
        licence="not stated on the page that reports its accuracy; see the file's own terms",
        source="https://www.microsoft.com/en-us/research/blog/microsoft-vision-model-resnet-50-"
        "combines-web-scale-data-and-multi-task-learning-to-achieve-state-of-the-art",
    ),
)
