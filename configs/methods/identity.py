"""The unchanged teacher feature, for a student that has the teacher's width.

Source       baseline without an alignment.
Differs      from `svd` by a rotation only, because with equal widths the SVD keeps all variance.
Expectation  the scores of `svd`. A student of another width is an error when the suite is planned.
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
