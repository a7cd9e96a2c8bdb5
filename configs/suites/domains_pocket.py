"""Detection in fog without boxes in fog: which pre-training, and does adaptation help?

Command   python tools/run_suite.py configs/suites/domains_pocket.py  (can be stopped and resumed)
Cost      in addition to `pocket`, whose backbones are reused: 49 minutes on two cores, with other
          work; 30 transfer runs of about 2 minutes each, with SSDA (domain adaptation) 5
Outcome   results/domains_pocket: fog removes nearly the whole score of every detector (kdep: 0.7
          against 8.0). Supervised is best on both domains, with kdep and SSDA not significantly
          worse in fog. SSDA gives no significant gain

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
    # Other programs ran on the machine, so wall times are not valid measurements.
    runtime=dict(timed=False),
)
