"""The published evidence: pre-training seeds as well, 100 % and 10 % of the images, an ablation.

Command: python tools/run_suite.py pocket_full   (hours; stop it and go on at will)
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_full",
    about="as pocket, with three pre-training seeds, two data shares and the ablation without PTS",
    methods=["kdep", "svd", "supervised", "scratch"],
    shares=[1.0, 0.1],
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),
)
