"""EfficientNet-Lite0's trunk learns from Lite2 and meets its own ImageNet weights (arm `imagenet`).

Command   python tools/run_suite.py configs/suites/pocket_lite0.py
Cost      see results/README.md: under two hours on two CPU cores; stop it and go on at will
Outcome   60 cells: 4 arms x 3 seeds x 5 tasks. `imagenet` is what a user gets by downloading: it
          saw 1.28 M labelled images for hundreds of epochs, the other arms 32,000 for two.

The student is the trunk, without the last 1x1 convolution: see `configs/students/`. Departures from
`pocket`: 2 epochs instead of 16, in float32 (on the CPU of the published run bfloat16 does not
help this network's depthwise convolutions); and two rates of transfer, for all arms alike, at which
the `imagenet` weights keep their course: the fine-tuned head learns at the backbone's rate, with
gradients clipped, and the detector at a quarter of pocket's rate. At pocket's own rates `imagenet`
leaves its course in both.
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
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),
    # Other work shared the machine of the published run: its wall times are no measurement.
    runtime=dict(timed=False),
    claims=["kdep_beats_scratch", "kdep_beats_supervised", "kdep_reaches_imagenet"],
)
suite.budget.update(
    epochs=2,
    precision="float32",
)
