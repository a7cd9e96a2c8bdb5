"""The learning rate of FitNets with four levels, scored on the validation split, for `kdep_levels`.

Command   python tools/run_suite.py configs/suites/kdep_levels_grid.py
Cost      a pre-training (90 to 105 s on one core) and a linear probe of a few seconds per rate;
          the teacher cache of `kdep_anatomy` is reused
Outcome   results/kdep_levels_grid: 0.8 is best (48.3; 1.6 gives 46.8 and 0.2 gives 41.8)

The rate with the highest validation score is used. If it is the smallest or the largest, another
rate is tried. With one seed and 400 images the choice is noisy.
"""

from mmengine.config import read_base

with read_base():
    from .kdep_levels import four_levels, suite

suite.update(
    name="kdep_levels_grid",
    about="FitNets with four levels at several learning rates, scored on the validation split",
    methods=[
        dict(four_levels, name=f"fitnets_4-lr{rate}", optimizer=dict(lr=rate))
        for rate in (0.05, 0.2, 0.8, 1.6)
    ],
    tasks=["pocket_probe_val"],
    seeds=dict(pretrain=[0], transfer=[0], pairs="diagonal"),  # seed i with seed i
    claims=[],
)
