"""Detection in fog without boxes in fog: which pre-training, and does SSDA help?

Command   python tools/run_suite.py configs/suites/domains_pocket.py  (can be stopped and resumed)
Cost      in addition to `pocket`, whose backbones are reused: 30 transfer runs; on one core about
          2 minutes for each run of the task alone, and 7 minutes for each run with SSDA
Outcome   not run yet

The target domain is the test scenes in generated fog (`pocket_det_fog`); the source domain is the
clear test scenes (`pocket_det_fog_source`). The gap between both columns is the loss by the fog.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="domains_pocket",
    about="half-width ResNet-18 at 64 px: detection in fog with boxes for clear scenes only",
    methods=["scratch", "supervised", "kdep", "ssda", dict(base="ssda", pretrained_by="scratch")],
    tasks=["pocket_det_fog", "pocket_det_fog_source"],
    claims=[],
)
