"""1-D interpolation of the teacher's channels down to the student's width.

Source       CVMI-Lab/KDEP src/resnet.py, comments "interpolate" (nearest, torch's default there).
Differs      from `svd` only in the alignment.
Expectation  if the teacher's width Dt is a multiple of the student's width Ds, mode "nearest"
             selects every (Dt / Ds)-th channel. This is arbitrary, because channels have no order,
             and keeps about Ds / Dt of the variance.
"""

from kdep_bench.features.aligners import Interpolate
from kdep_bench.features.transform import NoTransform
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="interpolate",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022; CVMI-Lab/KDEP src/resnet.py, comments",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type=Interpolate, mode="nearest"),
    transform=dict(type=NoTransform),
)
