"""Variance matching: the SVD channels are rescaled to the teacher channels' standard deviations.

Source       CVMI-Lab/KDEP src/resnet.py, comments "Var matching", step 2, method 2: the k-th
             largest std of the raw feature for the k-th direction.
Differs      from `svd` and `kdep` only in the transform.
Expectation  Std Ratio after the transform at most that of the raw feature (the Ds largest of its Dt
             channel stds), against the larger one after the SVD.
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
