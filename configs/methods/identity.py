"""The unchanged teacher feature, for a student of the teacher's width (Ds = Dt).

Source       no alignment; with equal widths the SVD is only a rotation.
Differs      from `svd` by a rotation without loss: both keep all of the variance.
Expectation  as `svd` up to the choice of channels; other widths are refused at planning.
"""

from kdep_bench.features.aligners import Identity
from kdep_bench.features.transform import NoTransform
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="identity",
    family="feature",
    labels_used=False,
    source="baseline: no alignment",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type=Identity),
    transform=dict(type=NoTransform),
)
