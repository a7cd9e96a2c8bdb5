"""Whitening instead of power temperature scaling: every direction kept has the same variance.

Source       CVMI-Lab/KDEP src/resnet.py, comments "Var matching", step 1 (divide by the singular
             value, times 500; here the automatic loss weight replaces the factor 500).
Differs      from `svd` and `kdep` only in the transform.
Expectation  Std Ratio 1 after the transform. The smallest directions, which are the noisiest, weigh
             as much as the largest: the failure that power temperature scaling reduces.
"""

from kdep_bench.features.transform import Whitening
from kdep_bench.objectives.feature_regression import FeatureRegression

method = dict(
    name="whiten",
    family="feature",
    labels_used=False,
    source="ablation of He et al., CVPR 2022; CVMI-Lab/KDEP src/resnet.py, comments",
    objective=dict(type=FeatureRegression, weight="auto"),
    align=dict(type="svd"),
    transform=dict(type=Whitening),
)
