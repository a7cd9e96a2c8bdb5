"""Sensitivity to the loss weight: KDEP's `scale` from 1 to 100 at one learning rate.

Command   python tools/run_suite.py configs/suites/pocket_weight.py
Cost      about 20 minutes on two cores in addition to a finished `pocket`, whose data and cache are
          reused
Outcome   4 methods, scored on the validation split by a linear probe with a fixed regularisation
          strength, so that `scale` can be chosen without reading the test split

The public code sets the loss weight by hand: w = 3 for one teacher and 20 for another. Here
w = scale / (mean square of the target), so that one scale suits every teacher.
"""

from mmengine.config import read_base

from kdep_bench.objectives.feature_regression import FeatureRegression

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_weight",
    about="KDEP's loss weight, two epochs, linear probe on the validation split",
    methods=[
        dict(
            base="kdep",
            name=f"kdep_scale{scale}",
            objective=dict(
                _delete_=True, type=FeatureRegression, weight="auto", scale=float(scale)
            ),
        )
        for scale in (1, 5, 20, 100)
    ],
    tasks=["pocket_probe_val"],
    claims=[],
)
suite["budget"].update(epochs=2)
