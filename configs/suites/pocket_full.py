"""The published evidence: pre-training seeds as well, two data shares, two students, an ablation.

EfficientNet-Lite0 learns from Lite2 and meets its own ImageNet weights (arm `imagenet`).

Command: python tools/run_suite.py pocket_full   (hours; stop it and go on at will)
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_full",
    about="as pocket, with three pre-training seeds, two data shares, two students, five arms",
    students=["resnet18_w32", "efficientnet_lite0"],
    teacher=dict(resnet18_w32="efficientnet_lite0", efficientnet_lite0="efficientnet_lite2"),
    methods=["kdep", "svd", "supervised", "scratch", "imagenet"],
    shares=[1.0, 0.1],
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),
    claims=[
        "kdep_beats_scratch",
        "kdep_beats_supervised",
        "kdep_10pct_vs_supervised",
        "pts_helps",
        "kdep_reaches_imagenet",
    ],
)
