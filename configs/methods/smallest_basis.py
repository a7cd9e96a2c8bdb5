"""The last principal directions instead of the first: the SVD turned upside down (row B-2).

Source       CVMI-Lab/KDEP src/resnet.py, comments "smallest eigen values". Directions that are
             rounding noise (variance below 2^-22 of the largest) are passed over.
Differs      from `svd` in the alignment alone: no transform, centred, the same loss weight rule.
Expectation  the least energy of all bases; what it still teaches is not in the energy.
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
