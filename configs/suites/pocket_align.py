"""Which alignment and which transform: every fixed and learned one under one budget.

Command   python tools/run_suite.py configs/suites/pocket_align.py
Cost      not measured; twelve pre-trainings of the size of `pocket`'s, whose data, views, cache,
          kdep and scratch it takes over (`--dry-run` estimates it)
Outcome   14 arms x 2 tasks x 3 transfer seeds, one pre-training seed. The question it puts: does a
          learned projector (conv1x1, mlp, vkd) beat a fixed cut (kdep, phis, whiten, svd), as later
          work says and KDEP denies, and does the basis matter (svd, top_variance, random_basis)?
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
