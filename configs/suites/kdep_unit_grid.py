"""The learning rate of `kdep_unit`, scored on the validation split, for the suite `kdep_unit`.

Command   python tools/run_suite.py configs/suites/kdep_unit_grid.py
Cost      per rate a pre-training (90 to 105 s on one core) and a linear probe of a few seconds
Outcome   results/kdep_unit_grid: 1.6 is best (33.2; 0.8 gives 30.2 and 3.2 gives 29.8)

The rate with the highest validation score is used. If it is the smallest or the largest, another
rate is tried. With one seed and 400 images the choice is noisy. The suite does not read the test
split.
"""

from mmengine.config import read_base

with read_base():
    from .kdep_anatomy import suite

suite.update(
    name="kdep_unit_grid",
    about="kdep_unit at several learning rates, scored on the validation split",
    methods=[
        dict(base="kdep_unit", name=f"kdep_unit-lr{rate}", optimizer=dict(lr=rate))
        for rate in (0.0125, 0.05, 0.2, 0.8, 1.6, 3.2)
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),  # seed i with seed i
    claims=[],
)
