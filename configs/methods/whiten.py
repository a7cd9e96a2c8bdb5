"""Whitening instead of power temperature scaling: all channels of the target have equal variance.

Source       CVMI-Lab/KDEP src/resnet.py, comments "Var matching", step 1: division by the singular
             values. The automatic loss weight replaces the factor 500 there.
Differs      from `svd` and `kdep` only in the transform.
Expectation  std ratio 1 after the transform. The directions of smallest variance, which are the
             noisiest, have the same weight as the largest; power temperature scaling reduces their
             weight.
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
