"""Variance matching: the SVD channels are rescaled to the teacher channels' standard deviations.

Source       CVMI-Lab/KDEP src/resnet.py, comments "Var matching", step 2, method 2: the k-th
             SVD direction is given the k-th largest std of the raw feature's channels.
Differs      from `svd` and `kdep` only in the transform.
Expectation  the std ratio after the transform is at most that of the raw feature; after the SVD
             alone it is larger.
"""

from kdep_bench.features.transform import StdMatch
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="stdmatch",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022; CVMI-Lab/KDEP src/resnet.py, comments",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=StdMatch),
)
