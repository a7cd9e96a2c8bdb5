"""Whitening in place of power temperature scaling: every kept direction counts the same.

Source       CVMI-Lab/KDEP src/resnet.py, comments "Var matching", step 1 (divide by the singular
             value, times 500; the loss weight's rule replaces the 500).
Differs      from `svd` and `kdep` in the transform alone.
Expectation  Std Ratio 1 after the transform. The smallest kept directions, the noisiest, weigh as
             much as the largest: the failure that power temperature scaling softens.
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
