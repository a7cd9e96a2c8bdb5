"""Detection in fog at full size: which pre-training, and does domain adaptation (`ssda`) help?

Command   python tools/run_suite.py paper_foggy --dry-run      # the stages and their cost
          python tools/run_suite.py paper_foggy --rehearse     # every stage, tiny data, on a CPU
          KDEP_DATA=/data python tools/run_suite.py paper_foggy
Cost      not measured; --dry-run estimates it. The pre-trainings have the protocol of `paper_r18`
          with the teacher ResNet-50, 100 % of ImageNet-1K and 90 epochs. A transfer with `ssda`
          computes 3.3 times as much as one without
Outcome   not run yet

Five rows: no pre-training, supervised and KDEP, each trained on clear scenes of Cityscapes only; no
pre-training and KDEP also with `ssda`, which reads foggy scenes without boxes. The score on foggy
scenes shows whether a pre-training makes a detector more robust, and whether domain adaptation
makes it unnecessary. `domains_pocket` is the same comparison at pocket size.
"""

from mmengine.config import read_base

with read_base():
    from .paper_r18 import suite

suite.pop("variants")
suite.update(
    name="paper_foggy",
    about="ResNet-18, Cityscapes to Foggy Cityscapes, boxes for clear scenes only",
    data=dict(base="imagenet", sets=["foggy_cityscapes"]),
    teacher="resnet50",
    methods=["scratch", "supervised", "kdep", "ssda", dict(base="ssda", pretrained_by="scratch")],
    tasks=["foggy_cityscapes", "foggy_cityscapes_source"],
    claims=[],
)
