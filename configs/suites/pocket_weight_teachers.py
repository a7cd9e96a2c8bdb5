"""The loss weight on two teachers: the public code's two guesses against the rule that has none.

Command   python tools/run_suite.py configs/suites/pocket_weight_teachers.py
Cost      not measured; beside a finished `pocket`, eight pre-trainings of two epochs and the cache
          of EfficientNet-Lite2 (`--dry-run` estimates it)
Outcome   8 cells x 3 seeds, scored on the *validation* split by a linear probe with a fixed C.
          A rule that holds is no worse than the better of w = 3 and w = 20 for either teacher.

The student stands here twice, by two names, because a suite has one teacher a student. `kdep` is
w = 20 / (mean square of the target); `kdep_unit` shows the target in units of its root mean square
as well, so that neither w nor T depends on the teacher.
"""

from mmengine.config import read_base

from kdep_bench.objectives.feature_regression import FeatureRegression

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_weight_teachers",
    about="KDEP's loss weight on two teachers, two epochs, linear probe on the validation split",
    students=["resnet18_w32", dict(base="resnet18_w32", name="resnet18_w32_lite2")],
    teacher=dict(
        resnet18_w32="efficientnet_lite0",
        resnet18_w32_lite2="efficientnet_lite2",
    ),
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
