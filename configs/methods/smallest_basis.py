"""The last principal directions instead of the first: the SVD in reverse order.

Source       CVMI-Lab/KDEP src/resnet.py, comments "smallest eigen values". Directions that are
             rounding noise (variance below 2^-22 of the largest) are skipped.
Differs      from `svd` only in the alignment.
Expectation  the smallest explained variance of all bases. A gain over `scratch` would not be due to
             the explained variance.
"""

from kdep_bench.features.aligners import SmallestBasis
from kdep_bench.features.transform import NoTransform
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="smallest_basis",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022; CVMI-Lab/KDEP src/resnet.py, comments",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type=SmallestBasis),
    transform=dict(type=NoTransform),
)
