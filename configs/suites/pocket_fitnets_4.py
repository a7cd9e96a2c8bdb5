"""The suite `pocket` with two more methods: `fitnets_4`, recommended in README, and `kdep_maps_4`.

Command   python tools/run_suite.py configs/suites/pocket_fitnets_4.py  (can be stopped and resumed)
Cost      in addition to `pocket`, whose stages are reused: a teacher cache with four maps per view
          (6 GB), two pre-trainings and 30 transfer runs; all stages of both suites took about an
          hour and a half on two cores of a shared machine
Outcome   results/pocket_fitnets_4: fitnets_4 is among the best on all five tasks. Over all tasks it
          is better than kdep_maps_4, and both are better than kdep and than supervised

The learning rates of fitnets_4 and kdep_maps_4 are those chosen at a tenth of the images, in
`kdep_levels_grid` and `kdep_anatomy_grid`; no rate was searched at this budget. The other methods
have pocket's. The claims were fixed before the scores of these two methods were known.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .pocket import suite

pairs = [
    ("fitnets_4", "kdep"),
    ("fitnets_4", "supervised"),
    ("kdep_maps_4", "kdep"),
    ("kdep_maps_4", "supervised"),
    ("fitnets_4", "kdep_maps_4"),
]

suite.update(
    name="pocket_fitnets_4",
    about="pocket with FitNets and KDEP on four levels of maps: half-width ResNet-18 at 64 px",
    methods=[
        "kdep",
        "kdep_maps_4",
        dict(base="fitnets_4", optimizer=dict(lr=0.8)),
        "supervised",
        "scratch",
    ],
    claims=["kdep_beats_scratch", "kdep_beats_supervised", *(above(*pair) for pair in pairs)],
    # Other programs ran on the machine, so wall times are not valid measurements.
    runtime=dict(timed=False),
)
