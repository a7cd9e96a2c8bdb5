"""The methods of `methods_pocket` on detection and segmentation, with the first of its three seeds.

Command   python tools/run_suite.py configs/suites/methods_pocket_dense.py
Cost      45 minutes on two shared cores in addition to a finished `methods_pocket`; on one idle
          core 110 s per detector and 75 s per segmenter. The tables report no times, because the
          machine was shared
Outcome   results/methods_pocket_dense. With one seed, differences have no interval and no
          conclusions can be drawn
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import suite

suite.update(
    name="methods_pocket_dense",
    about="all methods under one protocol, detection and segmentation, one seed",
    claims=[],
    tasks=["pocket_det", "pocket_seg"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),  # seed i with seed i
    runtime=dict(timed=False),  # the tables have no times
)
