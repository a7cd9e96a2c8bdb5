"""The teacher's feature as it is, for a student of the teacher's width (Ds = Dt).

Source       no alignment at all; where widths agree the SVD only rotates.
Differs      from `svd` by a rotation that loses nothing: all of the energy either way.
Expectation  as `svd` up to the choice of channels; another width is refused before any work.
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
