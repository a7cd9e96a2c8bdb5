"""EfficientNet-Lite0 learns from Lite2 and meets its own ImageNet weights (arm `imagenet`).

Command   python tools/run_suite.py configs/suites/pocket_lite0.py
Cost      see results/README.md; hours: stop it and go on at will
Outcome   60 cells: 4 arms x 3 seeds x 5 tasks. `imagenet` is what a user gets by downloading: it
          saw 1.28 M labelled images for hundreds of epochs, the other arms 32,000 for two.

Departures from `pocket`: 2 epochs instead of 16 (this network takes 127 images/s a core in float32,
and is slower in bfloat16, which does not help depthwise convolutions), and the learning rate that
KDEP's public scripts give MobileNetV2, 0.1.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_lite0",
    about="EfficientNet-Lite0 at 64 px, teacher EfficientNet-Lite2, pocket data",
    students=["efficientnet_lite0"],
    teacher="efficientnet_lite2",
    methods=["kdep", "supervised", "scratch", "imagenet"],
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),
    # Other work shared the machine of the published run: its wall times are no measurement.
    runtime=dict(timed=False),
    claims=["kdep_beats_scratch", "kdep_beats_supervised", "kdep_reaches_imagenet"],
)
suite.budget.update(
    epochs=2,
    precision="float32",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4),
)
