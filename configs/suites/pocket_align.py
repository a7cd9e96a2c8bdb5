"""Alignments and transforms, fixed and learned, under one budget.

Command   python tools/run_suite.py configs/suites/pocket_align.py
Cost      not measured (`--dry-run` estimates it): twelve pre-trainings; data, views, cache, kdep
          and scratch of `pocket` are reused
Outcome   14 methods x 2 tasks x 3 transfer seeds, one pre-training seed. Questions: is a learned
          projector (conv1x1, mlp, vkd) better than a fixed one (kdep, phis, whiten, svd)? Later
          papers report so, KDEP the opposite. Does the basis matter (svd, top_variance,
          random_basis)?
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_align",
    about="alignments and transforms under one budget, as pocket",
    methods=[
        "kdep",
        "kdep_unit",
        "svd",
        "phis",
        "whiten",
        "stdmatch",
        "top_variance",
        "interpolate",
        "random_basis",
        "smallest_basis",
        "conv1x1",
        "mlp",
        "vkd",
        "scratch",
    ],
    tasks=["pocket_probe", "pocket_photos"],
    claims=["kdep_beats_conv1x1", "pts_helps", "kdep_beats_scratch"],
)
