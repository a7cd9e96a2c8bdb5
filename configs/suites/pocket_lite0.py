"""Another student (EfficientNet-Lite0's trunk) and teacher (Lite2), also with ImageNet weights.

Command   python tools/run_suite.py configs/suites/pocket_lite0.py
Cost      see results/README.md: under two hours on two CPU cores, can be stopped and resumed
Outcome   60 runs: 4 methods x 3 seeds x 5 tasks. `imagenet` are published weights, trained on
          1.28 M labelled images for hundreds of epochs; the other methods are trained on 32,000
          images for two epochs

The student is the trunk, without the last 1x1 convolution: see `configs/students/`. Differences
from `pocket`: 2 epochs instead of 16; float32, because bfloat16 does not speed up depthwise
convolutions on the CPU of the published run; and lower learning rates in two tasks, because
training from the `imagenet` weights diverges at the rates of `pocket`. In fine-tuning, the head has
the backbone's learning rate, and gradients are clipped; the detector has a quarter of the learning
rate of `pocket`. All methods have the same rates.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_lite0",
    about="EfficientNet-Lite0's trunk at 64 px, teacher EfficientNet-Lite2, pocket data",
    students=["efficientnet_lite0_trunk"],
    teacher="efficientnet_lite2",
    methods=["kdep", "supervised", "scratch", "imagenet"],
    tasks=[
        "pocket_probe",
        dict(base="pocket_finetune", recipe=dict(head_lr_mult=1, clip_norm=5.0)),
        "pocket_photos",
        dict(base="pocket_det", recipe=dict(lr=0.005)),
        "pocket_seg",
    ],
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    # The published run was on a shared machine: its wall times are not valid measurements.
    runtime=dict(timed=False),
    claims=["kdep_beats_scratch", "kdep_beats_supervised", "kdep_reaches_imagenet"],
)
suite.budget.update(
    epochs=2,
    precision="float32",
)
