"""OTA, for classification with ten images per class, and without some of its parts; three seeds.

Command   python tools/run_suite.py configs/suites/ota_pocket.py  (can be stopped and resumed)
Cost      12 transfers and two teachers; with OTA four minutes each on one core of a machine with
          other work, without generated images half a minute
Outcome   results/ota_pocket: 14.0 (no distillation) to 15.2 (ota) of 100, chance 12.5; no
          difference is significant. The teacher itself has only 14.7 after its fine-tuning, and
          13.6 with IRF

OTA is explained in configs/methods/ota.py. The data have no pool, so no method can read
pre-training images. The teacher is the ImageNet network `efficientnet_lite0_trunk`, fine-tuned on
the task's 80 training images (ten for each of 8 classes).
`ota_real_only`: distillation on the 80 images without generated ones. `ota_plain_teacher`: a
teacher without IRF, the contrastive loss of its fine-tuning.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="ota_pocket",
    about="half-width ResNet-18 at 64 px from ten images per class, without pre-training images",
    data=dict(
        base="pocket",
        name="pocket_few",
        pool_composites=0,
        pool_crops=0,
        classify=dict(train=80, val=80, test=1600),
        scenes=dict(train=0, val=0, test=0),
    ),
    methods=[
        "scratch",
        dict(
            base="ota",
            name="ota_real_only",
            about="ota without generated images",
            transfer=dict(generated=0.0),
        ),
        dict(
            base="ota",
            name="ota_plain_teacher",
            about="ota with a teacher that was fine-tuned without a contrastive loss (without IRF)",
            transfer=dict(teacher=dict(transfer=None)),
        ),
        "ota",
    ],
    tasks=["pocket_few"],
    claims=[],
    runtime=dict(timed=False),  # other work ran on the machine of the published run
)
