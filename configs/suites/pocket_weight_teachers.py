"""The loss weight on two teachers: the public code's two guesses against the rule that has none.

Command   python tools/run_suite.py configs/suites/pocket_weight_teachers.py
Cost      not measured; beside a finished `pocket`, eight pre-trainings of two epochs and the cache
          of EfficientNet-Lite2 (`--dry-run` estimates it)
Outcome   24 cells: 4 arms x 2 teachers x 3 seeds, scored on the *validation* split by a linear
          probe with a fixed C. A rule that holds is no worse than the better of w = 3 and w = 20
          for either teacher.

`kdep` is w = 20 / (mean square of the target); `kdep_unit` shows the target in units of its root
mean square as well, so that neither w nor T depends on the teacher. These two teachers are close:
over 1,600 pocket views the rule gives w = 4.5 for Lite0 and 4.2 for Lite2.
"""

from mmengine.config import read_base

from kdep_bench.objectives.feature_regression import FeatureRegression

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_weight_teachers",
    about="KDEP's loss weight on two teachers, two epochs, linear probe on the validation split",
    variants=[dict(teacher="efficientnet_lite0"), dict(teacher="efficientnet_lite2")],
    methods=[
        dict(
            base="kdep",
            name="kdep_w3",
            objective=dict(_delete_=True, type=FeatureRegression, weight=3.0),
        ),
        dict(
            base="kdep",
            name="kdep_w20",
            objective=dict(_delete_=True, type=FeatureRegression, weight=20.0),
        ),
        "kdep",
        "kdep_unit",
    ],
    tasks=["pocket_probe_val"],
    claims=[],
)
suite["budget"].update(epochs=2)
