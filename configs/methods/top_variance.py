"""The teacher's channels of largest variance, as many as the student has, without rotation.

Source       CVMI-Lab/KDEP src/resnet.py, comments "directly select by var".
Differs      from `svd` only in the alignment.
Expectation  more explained variance than `interpolate` and less than `svd`, by construction.
"""

from kdep_bench.features.aligners import TopVariance
from kdep_bench.features.transform import NoTransform
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="top_variance",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022; CVMI-Lab/KDEP src/resnet.py, comments",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type=TopVariance),
    transform=dict(type=NoTransform),
)
