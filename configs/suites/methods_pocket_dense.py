"""The methods of `methods_pocket` on detection and segmentation, with the first of its three seeds.

Command   python tools/run_suite.py configs/suites/methods_pocket_dense.py
Cost      the pre-trainings of `methods_pocket` are reused; 45 minutes on two cores shared with the
          tests, so no times are reported (110 s per detector and 75 s per segmentor on one idle
          core)
Outcome   results/methods_pocket_dense. One seed: differences are shown without an interval and
          decide nothing
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import suite

suite.update(
    name="methods_pocket_dense",
    about="all methods under one protocol, detection and segmentation, one seed",
    claims=[],
    tasks=["pocket_det", "pocket_seg"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),
    runtime=dict(timed=False),
)
