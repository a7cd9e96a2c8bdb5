"""The suite `pocket` and the method that README recommends, `fitnets_4`.

Command   python tools/run_suite.py configs/suites/pocket_fitnets_4.py  (can be stopped and resumed)
Cost      in addition to `pocket`, whose stages are reused: a teacher cache with four maps per view
          (6 GB), one pre-training and 15 transfer runs; not measured
Outcome   not run yet

The learning rate of fitnets_4 is the one that `kdep_levels_grid` chose at a tenth of the images;
no rate was searched at this budget. The other methods have pocket's.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .pocket import suite

suite.update(
    name="pocket_fitnets_4",
    about="half-width ResNet-18 at 64 px: kdep, fitnets_4, supervised and scratch, pocket data",
    methods=["kdep", dict(base="fitnets_4", optimizer=dict(lr=0.8)), "supervised", "scratch"],
    claims=[
        *("kdep_beats_scratch", "kdep_beats_supervised"),
        *(above("fitnets_4", other) for other in ("kdep", "supervised")),
    ],
    # Other programs ran on the machine, so wall times are not valid measurements.
    runtime=dict(timed=False),
)
